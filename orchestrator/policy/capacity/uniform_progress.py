"""`uniform-progress`: as far along as the clock, on average, by on-demand machines where spot does not suffice.

From Wu et al., "Can't Be Late" (NSDI 2024). The job's progress is held against the line from its begin to its deadline. Waiting
and behind the line: on-demand machines. Spot offered: take it. On demand: stay until spot is offered *and* the progress is
where the line will be two restart overheads from now. The last rule is that of the authors' program; the paper can be read as
leaving on-demand machines once the line is caught up with, which waits with nothing held and costs up to a quarter more.

Limits: its authors' further rule for deadlines beyond 1.67 times the work (wait first) is not applied.
"""

from __future__ import annotations

from orchestrator.policy.capacity.contract import Cause, Decision, Situation
from orchestrator.policy.capacity.places import Market
from orchestrator.policy.durations import seconds as told


class UniformProgress:
    """On the line between begin and deadline."""

    name = "uniform-progress"

    def decide(self, situation: Situation) -> Decision:
        market = Market(situation)
        if (final := market.safety()) is not None:
            return final
        elapsed = (situation.now_ns - situation.began_ns) / 1e9
        pace = situation.work_seconds / max(1e-9, (market.deadline_ns - situation.began_ns) / 1e9)
        progress = situation.work_seconds - market.work_left
        if market.on_demand_held:
            return self._from_on_demand(market, progress, elapsed, pace)
        if market.spot is not None:
            if market.spot_held:
                return market.spot_now(Cause.SPOT_KEPT, "spot is kept until it is taken")
            if market.may_start_spot:
                return market.spot_now(Cause.SPOT_OFFERED, f"offered, with {told(market.slack)} of slack")
            return market.on_demand(Cause.SAFETY_NET, f"{told(market.slack)} of slack do not hold two starts")
        ahead = progress / max(pace, 1e-9) - elapsed
        if ahead <= 1e-3:
            return market.on_demand(Cause.BEHIND, f"no spot is offered, and the work is {told(-ahead)} behind its line")
        return market.wait(f"no spot is offered, and the work is {told(ahead)} ahead of its line", until=ahead)

    def _from_on_demand(self, market: Market, progress: float, elapsed: float, pace: float) -> Decision:
        wished = (elapsed + 2 * market.mean) * pace
        if market.spot is None:
            return market.on_demand(Cause.ON_DEMAND_KEPT, "no spot is offered to change to")
        if progress >= wished - 1e-3 and market.may_start_spot:
            return market.spot_now(Cause.SPOT_OFFERED, "offered, and the work is two restarts ahead of its line")
        behind = max(0.0, wished - progress)
        until = market.restart_left + behind / (1 - pace) if pace < 1 and market.may_start_spot else None
        return market.on_demand(
            Cause.ON_DEMAND_KEPT, "spot is offered, but the work is not two restarts ahead of its line", until
        )
