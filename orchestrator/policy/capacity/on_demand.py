"""`on-demand`: the whole gang on the cheapest on-demand machines until the work is done. What all savings are measured against."""

from __future__ import annotations

from orchestrator.policy.capacity.contract import Cause, Decision, Situation
from orchestrator.policy.capacity.places import Market


class OnDemand:
    """Never spot."""

    name = "on-demand"

    def decide(self, situation: Situation) -> Decision:
        market = Market(situation)
        return market.done() or market.on_demand(Cause.ON_DEMAND_ONLY, "the policy on-demand takes nothing else")
