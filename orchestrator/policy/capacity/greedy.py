"""`greedy`: spot whenever it is offered, nothing while it is not, on-demand machines at the last moment.

The three rules that the paper of Uniform Progress calls thrifty, safety net and exploitation (Wu et al., "Can't Be Late",
NSDI 2024, section 4). Cheap where the market is kind; where it is not, nearly all work is left to on-demand machines.
"""

from __future__ import annotations

from orchestrator.policy.capacity.contract import Cause, Decision, Situation
from orchestrator.policy.capacity.places import Market
from orchestrator.policy.durations import seconds as told


class Greedy:
    """Spot while there is time."""

    name = "greedy"

    def decide(self, situation: Situation) -> Decision:
        market = Market(situation)
        if (final := market.safety()) is not None:
            return final
        if market.on_demand_held:
            return market.on_demand(Cause.ON_DEMAND_KEPT, "once on demand, greedy stays there")
        if market.spot is None:
            return market.wait(f"no spot is offered, and on-demand machines can wait {told(market.spare)}")
        if market.spot_held:
            return market.spot_now(Cause.SPOT_KEPT, "spot is kept until it is taken")
        if market.may_start_spot:
            return market.spot_now(Cause.SPOT_OFFERED, f"offered, with {told(market.slack)} of slack")
        return market.on_demand(Cause.SAFETY_NET, f"{told(market.slack)} of slack do not hold two starts")
