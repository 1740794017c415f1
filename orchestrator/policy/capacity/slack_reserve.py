"""`slack-reserve`: wait for spot while there is slack to spare, then bridge every gap with on-demand machines.

Ours, three lines: spot whenever it is offered; nothing while the slack is above a reserve of `starts` pairs of restart
overheads; on-demand machines below it, and back to spot as soon as it is offered. Waiting first is close to best, because slack that
is kept unused buys nothing; the reserve pays for the changes back and forth that remain.
"""

from __future__ import annotations

from orchestrator.policy.capacity.contract import Cause, Decision, Situation
from orchestrator.policy.capacity.places import Market
from orchestrator.policy.durations import seconds as told

PAIRS = 16
"""Changes to spot and back that the reserve holds. 16 was best at an overhead of 0.1 h on the recorded markets, 32 at 0.02 h."""


class SlackReserve:
    """Slack first, then on-demand machines."""

    name = "slack-reserve"

    def __init__(self, pairs: float = PAIRS) -> None:
        self.pairs = pairs

    def decide(self, situation: Situation) -> Decision:
        market = Market(situation)
        if (final := market.safety()) is not None:
            return final
        if market.spot is not None:
            if market.spot_held and not market.worn_out:
                return market.spot_now(Cause.SPOT_KEPT, "spot is kept until it is taken")
            if market.may_start_spot and market.within_cap(market.spot):
                return market.spot_now(Cause.SPOT_OFFERED, f"offered, with {told(market.slack)} of slack")
            return market.on_demand(
                Cause.SAFETY_NET, f"{told(market.slack)} of slack, or the cap on the cost, do not hold another start"
            )
        reserve = self.pairs * 2 * market.mean
        if market.slack <= reserve + 1e-3:
            why = f"no spot is offered, and the slack of {told(market.slack)} is within the reserve of {told(reserve)}"
            return market.on_demand(Cause.BRIDGING, why)
        if market.on_demand_held:
            return market.on_demand(Cause.ON_DEMAND_KEPT, "no spot is offered to change to")
        beyond = market.slack - reserve
        return market.wait(
            f"no spot is offered, and the slack is {told(beyond)} above its reserve of {told(reserve)}", until=beyond
        )
