"""A situation as the policies look at it: what is held and offered, how much slack there is, and the moves that keep a deadline.

Slack is the time until the deadline less the work left. A gang that works keeps its slack; waiting and restarting use it up.
From nothing, on-demand machines need the high estimate of the restart overhead, so:

* waiting is safe until the slack is down to one high overhead (`wait`);
* a start on spot is safe when the slack holds the mean overhead of that start and the high one of on-demand machines after it;
  should the start take longer, it is given up when the slack is down to the high overhead (`on_spot`);
* spot workers of a whole gang that work keep their slack, so they are kept whatever it is. Fewer of them use it up by what they
  are slower: they are kept until the slack is down to the high overhead, and take in others only where a start would be safe.

Without a deadline a job is taken to have `PATIENCE` times its work for it, so that waiting has an end.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cached_property

from orchestrator.domain.offerings import CapacityType
from orchestrator.policy.capacity.contract import Cause, Decision, Holding, Offer, Situation, Target
from orchestrator.policy.durations import seconds as told

PATIENCE = 2.0
"""A job without a deadline is to be done within so many times its work."""
CAP = 0.0075
"""What a job may cost beyond on-demand machines with one restart, as a share of those; or one useless change to spot and back, where
that is more (a job so short that it is could never change at all)."""
MARGIN_SECONDS = 1.0
"""Decided so much earlier than needed, for what is rounded on the way."""
STUCK = 0.25
"""A restart that has outlasted its high estimate is expected to take this share of it longer."""


class Market:
    """One situation, with what follows from it worked out once."""

    def __init__(self, situation: Situation) -> None:
        self.situation = situation
        self.now_ns = situation.now_ns
        self.work_left = max(0.0, situation.work_left_seconds)
        self.high = max(situation.overhead.high_seconds, situation.overhead.mean_seconds)
        self.mean = situation.overhead.mean_seconds
        deadline_ns = situation.deadline_ns
        if deadline_ns is None:
            deadline_ns = situation.began_ns + round(PATIENCE * situation.work_seconds * 1e9)
        self.deadline_ns = deadline_ns
        self.seconds_left = (deadline_ns - self.now_ns) / 1e9
        self.slack = self.seconds_left - self.work_left

    # --- what is held -------------------------------------------------------------------------------------------------

    @cached_property
    def spot_held(self) -> tuple[Holding, ...]:
        return tuple(held for held in self.situation.held if held.capacity_type is CapacityType.SPOT)

    @cached_property
    def on_demand_held(self) -> tuple[Holding, ...]:
        return tuple(held for held in self.situation.held if held.capacity_type is CapacityType.ON_DEMAND)

    @property
    def restart_elapsed(self) -> float:
        """Seconds of the restart under way; 0 when none is."""
        since = self.situation.restarting_since_ns
        return 0.0 if since is None else (self.now_ns - since) / 1e9

    @property
    def restart_left(self) -> float:
        """Seconds that the restart under way is expected to take yet; 0 when none is."""
        return self._left(self.mean)

    @property
    def restart_left_high(self) -> float:
        """Seconds that it may well take yet."""
        return self._left(self.high)

    def _left(self, expected: float) -> float:
        if self.situation.restarting_since_ns is None:
            return 0.0
        return max(expected - self.restart_elapsed, STUCK * expected if self.restart_elapsed > expected else 0.0)

    @property
    def works(self) -> bool:
        """Something is held and no restart is under way."""
        return bool(self.situation.held) and self.situation.restarting_since_ns is None

    @cached_property
    def held_on_demand_whole(self) -> bool:
        return sum(held.workers for held in self.on_demand_held) >= self.situation.workers_max

    # --- what is offered ----------------------------------------------------------------------------------------------

    @cached_property
    def spot(self) -> Offer | None:
        """The spot place to be in: where the gang is if that is still offered, else the cheapest that has room for the
        smallest gang; of equally cheap ones that with more room."""
        offers = self.spot_offers
        return offers[0] if offers else None

    @cached_property
    def spot_offers(self) -> tuple[Offer, ...]:
        """Spot places with room for the smallest gang, the one that is held first, then by price."""
        zones = {held.zone for held in self.spot_held}
        fit = [
            offer
            for offer in self.situation.offers
            if offer.capacity_type is CapacityType.SPOT and offer.count >= self.situation.workers_min
        ]
        return tuple(sorted(fit, key=lambda offer: (offer.zone not in zones, *_rank(offer))))

    @cached_property
    def on_demand_offer(self) -> Offer | None:
        """The cheapest on-demand place with room for the whole gang, else the one with most room; where the gang is already
        before all others, for moving costs an overhead."""
        zones = {held.zone for held in self.on_demand_held}
        whole = self.situation.workers_max
        fit = [
            offer
            for offer in self.situation.offers
            if offer.capacity_type is CapacityType.ON_DEMAND and offer.count >= self.situation.workers_min
        ]
        return min(
            fit, key=lambda offer: (-min(offer.count, whole), offer.zone not in zones, *_rank(offer)), default=None
        )

    # --- time ---------------------------------------------------------------------------------------------------------

    @property
    def on_demand_needs(self) -> float:
        """Seconds in which on-demand machines finish the work from now, by the high estimate of the overhead."""
        if self.held_on_demand_whole:
            return self.work_left + self.restart_left_high
        return self.work_left + self.high

    @property
    def spare(self) -> float:
        """Seconds for which on-demand machines could be put off."""
        return self.seconds_left - self.on_demand_needs - MARGIN_SECONDS

    @property
    def may_start_spot(self) -> bool:
        """Whether the slack holds a start on spot and another on demand after it."""
        return self.slack >= self.mean + self.high + MARGIN_SECONDS

    @property
    def may_wait(self) -> bool:
        """Whether the slack holds a start on demand, also of machines that are given back now."""
        return self.slack > self.high + MARGIN_SECONDS

    def within_cap(self, offer: Offer | None) -> bool:
        """Whether one more start on spot (None: waiting with nothing held) that turns out useless, and on-demand machines after
        it, would keep the job's cost under `CAP`. True where prices are not known."""
        demand = self.on_demand_offer
        price = demand.price_nanodollars_per_hour if demand is not None else None
        spot = 0 if offer is None else offer.price_nanodollars_per_hour
        if not price or spot is None:
            return True
        overhead, workers = self.mean / 3600, self.situation.workers_max
        usual = (self.situation.work_seconds / 3600 + overhead) * price * workers
        worst = overhead * spot * workers + (self.work_left / 3600 + overhead) * price * workers
        allowed = max(CAP * usual, overhead * (spot + price) * workers * 1.0001)
        return self.situation.spent_nanodollars + worst <= usual + allowed

    @property
    def worn_out(self) -> bool:
        """Part of the spot workers was taken, the rest starts anew, and another such start could cost more than the cap."""
        restarting_since_ns = self.situation.restarting_since_ns
        if restarting_since_ns is None or self.spot is None:
            return False
        lost = any(held.since_ns < restarting_since_ns for held in self.spot_held)
        return lost and not self.within_cap(self.spot)

    @cached_property
    def at_risk(self) -> str | None:
        """Why on-demand machines from now on would not surely do."""
        if self.situation.deadline_ns is None or not self.work_left:
            return None
        if self.works and self._whole_speed >= 1.0 and self.slack >= 0 and self.on_demand_held:
            return None
        needs = self.work_left + (self.restart_left_high if self.held_on_demand_whole else self.high)
        if self.seconds_left >= needs:
            if self.on_demand_offer is None and not self.held_on_demand_whole and self.spare <= 0:
                return f"no on-demand machines are offered, and {told(self.work_left)} of work must begin now"
            return None
        return (
            f"{told(self.work_left)} of work and up to {told(needs - self.work_left)} to start are left, and "
            f"{told(max(0.0, self.seconds_left))} until the deadline"
        )

    @property
    def _whole_speed(self) -> float:
        return self.situation.speed_of(sum(held.workers for held in self.situation.held))

    # --- decisions ----------------------------------------------------------------------------------------------------

    def done(self) -> Decision | None:
        """The end of every job: nothing is left to do."""
        return Decision((), Cause.DONE, "the work is done", None) if self.work_left <= 0 else None

    def on_demand(self, cause: Cause, why: str, until: float | None = None) -> Decision:
        """The whole gang on demand; on spot, or nothing, where no on-demand machines are offered. `until`: seconds."""
        offer = self.on_demand_offer
        if offer is None or (offer.count < self.situation.workers_max and self.situation.rigid):
            if self.spot is not None:
                return self.spot_now(Cause.NOTHING_OFFERED, f"{why}, but none are offered")
            return self.decision((), Cause.NOTHING_OFFERED, f"{why}, but nothing is offered")
        workers = min(offer.count, self.situation.workers_max)
        target = Target(offer.zone, CapacityType.ON_DEMAND, workers)
        return self.decision((target,), cause, f"{_count(workers)} on demand in {offer.zone}: {why}", until)

    def spot_now(self, cause: Cause, why: str, offer: Offer | None = None, until: float | None = None) -> Decision:
        """As many workers as fit on spot in `offer` (None: the best place). `until`: seconds."""
        offer = offer or self.spot
        assert offer is not None, "asked for a spot place where none is offered"
        workers = self._fitting(offer)
        target = Target(offer.zone, CapacityType.SPOT, workers)
        starts = self.situation.restarting_since_ns is not None or self._is_start((target,))
        slower = 1.0 if starts else 1.0 - self.situation.speed_of(workers)
        if self.may_wait and slower > 0:
            gone = (self.slack - self.high - MARGIN_SECONDS) / slower  # a start that takes too long, or too few workers
            until = gone if until is None else min(gone, until)
        return self.decision((target,), cause, f"{_count(workers)} on spot in {offer.zone}: {why}", until)

    def wait(self, why: str, until: float | None = None) -> Decision:
        """Hold nothing, at most until on-demand machines must be started. `until`: seconds, if sooner."""
        seconds = max(0.0, self.slack - self.high - MARGIN_SECONDS)  # without what may be held now
        return self.decision((), Cause.WAITING, why, seconds if until is None else min(seconds, until))

    def decision(self, targets: Iterable[Target], cause: Cause, reason: str, until: float | None = None) -> Decision:
        until_ns = None if until is None or until == math.inf else self.now_ns + max(1, round(until * 1e9))
        return Decision(tuple(targets), cause, reason, until_ns, self.at_risk)

    def safety(self) -> Decision | None:
        """What every policy does when its slack is used up: on-demand machines to the end, unless spot workers already work
        (then a change would only cost time). None: there is slack yet."""
        if self.work_left <= 0:
            return self.done()
        if self.spare > 0:
            return None
        if self.spot_held and self.works and self.spot is not None and self._ends_soonest(self.spot):
            return self.spot_now(Cause.SPOT_KEPT, "they work, and a change would cost the time that is left")
        why = (
            f"{told(self.work_left)} of work must begin now to meet the deadline in {told(max(0.0, self.seconds_left))}"
        )
        return self.on_demand(Cause.SAFETY_NET, why)

    def _ends_soonest(self, offer: Offer) -> bool:
        """Whether the spot workers that work here are kept though the slack is used up: they keep it as it is, or on-demand
        machines would be too late as well, and later than they."""
        speed = self._whole_speed
        if speed >= 1.0:
            return self._holds(offer)
        too_late = self.seconds_left < self.work_left + self.high
        return speed > 0 and too_late and self.work_left / speed <= self.work_left + self.mean

    def _fitting(self, offer: Offer) -> int:
        """Workers to hold there: all that fit; those that are held already where a larger gang, which starts anew, could cost
        the deadline or more than the cap."""
        fits = min(offer.count, self.situation.workers_max)
        here = sum(held.workers for held in self.spot_held if held.zone == offer.zone)
        if self.situation.workers_min <= here < fits and not (self.may_start_spot and self.within_cap(offer)):
            return here
        return fits

    def _holds(self, offer: Offer) -> bool:
        """Whether all that fits there is held there, and nothing else."""
        fits = min(offer.count, self.situation.workers_max)
        held = self.situation.held
        return len(held) == 1 and held[0].zone == offer.zone and held[0].workers == fits

    def _is_start(self, targets: tuple[Target, ...]) -> bool:
        held = {(one.zone, one.capacity_type): one.workers for one in self.situation.held}
        return held != {(one.zone, one.capacity_type): one.workers for one in targets}


def _rank(offer: Offer) -> tuple[bool, int, int, str]:
    price = offer.price_nanodollars_per_hour
    return price is None, price or 0, -offer.count, offer.zone


def _count(workers: int) -> str:
    return f"{workers} worker{'s' if workers != 1 else ''}"
