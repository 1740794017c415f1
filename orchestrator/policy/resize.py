"""How many workers train now: whether standbys that are ready are worth the pause that taking them in costs.

Growing stops the whole gang for a moment, and a machine that joined stops it again when it is taken away. A loss stops the gang
anyway, and then standbys join for nothing. So growing now has to pay between now and the next transition that would come
without it. With

    n, k      workers now, and after growing
    s(k)      speed of k over speed of n                                        (policy/speed.py)
    l(k)      rate at which a gang of k is interrupted                          (policy/hazard.py)
    T         time that the rest of the work takes at n; unknown: no end
    a, b      what joining, and what losing a machine, costs in time            (policy/durations.py; means)

the worth of being k instead of n, in seconds of training at n, until an interruption that n would have suffered too or the
end of the work, is

    A(n) = 0,    A(k) = (s(k) - 1 + (l(k) - l(n)) (max(0, A(k')) - b)) / (l(k) + s(k) / T)

where k' is the size after k lost one machine: gain at s(k) - 1, for as long as k lasts, less b for each interruption that only
the machines that joined bring, after which what is left of the growth goes on being worth something. (The end of the work is
taken as one more random moment, with mean T / s(k).) Growth counts only if no interruption falls into the pause itself, so
A(k) is multiplied by exp(-l(k) a), and A(k') by exp(-l(k') b). The gang may grow to a k with A(k) > a that is at least 2 %
faster; of several it takes the one that gets most done in the long run, with s(k) exp(-l(k) b) largest (pauses that begin anew
when they are interrupted leave exp(-l b) of the time). A falls with hazard and with b, so growing never begins because
machines went more often or transitions got dearer.

Hysteresis. Nothing shrinks by choice, so a round trip needs a loss, and each growth has been worth its a beforehand. After any
change a growth waits DWELL times a, so at most one part in DWELL + 1 of the time goes to growing, whatever the estimates.

Waiting for more. When further standbys are warming, growing now and again soon costs a twice. Waiting costs s(k) - 1 a second.
The gang waits while the next is expected before that sum reaches a, counted from when it could have grown: so waiting in vain
costs at most one transition (the bound of ski rental), and never more than a minute.

A transition that happens anyway (a loss, a notice, a wish) takes the k that gets most done in the long run.

No price in it: a standby that is ready is paid whether it trains or not. Whether to rent it is another decision.
Limits: interruptions are memoryless; machines that join are like those that are there; speed may be a guess until measured.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.domain.offerings import CapacityType
from orchestrator.policy.durations import Durations, Span, seconds
from orchestrator.policy.hazard import PRIORS, Observed, exposure_hours, hazard
from orchestrator.policy.speed import Speed

NOTICEABLE = 0.02
"""Relative gain in speed; a smaller one is within what measurements scatter by."""
DWELL = 1.0
"""Times the cost of joining, between a change and a growth."""
LONGEST_WAIT_SECONDS = 60.0
"""For standbys that are warming."""
RECENT = 8
FEWEST_RECENT = 3
"""Interruptions from which, in a storm, the hazard is taken when they came faster than what is expected in the long run: the
long run's prior weighs hours, which a bad hour does not outweigh in time."""
JOIN_PRIOR = (2.0, 10.0)
"""Mean and high percentile in seconds before any was measured; the prototype took 0.25 to 1.8 s, Ray Train 36 to 92 s."""
LOSS_PRIOR = (3.0, 15.0)
NANOSECONDS = 1_000_000_000
NANOSECONDS_PER_HOUR = 3_600 * NANOSECONDS


@dataclass(frozen=True, slots=True)
class Situation:
    """What the decision follows from. Sizes are numbers of workers."""

    present: int
    """In the gang; 0: it stands."""
    available: int
    """Could be in it: present and ready, none on a machine that is about to go."""
    allowed: tuple[int, ...]
    """Ascending; the batch divides over these."""
    speeds: Mapping[int, float]
    """Steps a second, or in any other unit, of each allowed size and of the present one."""
    interruptions_per_hour: Mapping[int, float]
    """Of a gang of each allowed size and of the present one."""
    joining: Span
    """The gang stands for so long when workers join."""
    losing: Span
    """The gang stands, and does again what was lost, for so long when a machine goes."""
    work_left_seconds: float | None = None
    """At the present size; None: unknown."""
    since_change_seconds: float | None = None
    """None: nothing changed yet."""
    warming_seconds: tuple[float, ...] = ()
    """Until each further standby is expected to be ready."""
    waited_seconds: float = 0.0
    """Since growing became possible."""
    workers_per_machine: int = 1


@dataclass(frozen=True, slots=True)
class Verdict:
    """`target` is the number of workers from now on: the present one for no change, 0 when no allowed size is to be had."""

    target: int
    reason: str
    """A sentence without its full stop."""
    again_seconds: float | None = None
    """Ask again after so long, though nothing else happens; None: not before something changes."""


def decide(situation: Situation) -> Verdict:
    """The size from now on (see the module)."""
    sizes = [size for size in situation.allowed if size <= situation.available]
    if not sizes:
        least = f"; the smallest allowed gang is {situation.allowed[0]}" if situation.allowed else ""
        return Verdict(0, f"{_workers(situation.available)} can train{least}")
    present = situation.present
    if present > situation.available or present not in situation.speeds or present < 1:
        return _anew(situation, sizes)
    larger = [size for size in sizes if size > present]
    if not larger:
        return Verdict(present, f"{_workers(present)} train and no larger allowed gang is to be had")
    worth = advantages(situation, present)
    cost = situation.joining.mean
    worth = {size: _survives(situation, size, cost) * value for size, value in worth.items()}
    noticeable = (1 + NOTICEABLE) * situation.speeds[present]
    paying = [size for size in larger if worth[size] > cost and situation.speeds[size] >= noticeable]
    best = max(paying or larger, key=lambda size: _in_the_long_run(situation, size))
    told = _told(situation, best, worth[best])
    if not paying:
        return Verdict(present, f"stay at {present} though {best} could train: {told}")
    dwell = DWELL * cost
    if situation.since_change_seconds is not None and situation.since_change_seconds < dwell:
        left = dwell - situation.since_change_seconds
        since = seconds(situation.since_change_seconds)
        return Verdict(
            present, f"stay at {present} for {seconds(left)} more: the last change was {since} ago; {told}", left
        )
    wait = _wait(situation, best, worth)
    if wait is not None:
        return wait
    return Verdict(best, f"grow from {present} to {best} workers: {told}")


def advantages(situation: Situation, base: int) -> dict[int, float]:
    """A(k) of the module's formula for `base` and every larger allowed size, in seconds of training at `base`."""
    rates = {size: per_hour / 3600 for size, per_hour in situation.interruptions_per_hour.items()}
    worth = {base: 0.0}
    for size in (size for size in situation.allowed if size > base):
        fallen = max((smaller for smaller in worth if smaller <= size - situation.workers_per_machine), default=base)
        faster = situation.speeds[size] / situation.speeds[base]
        brought = max(0.0, rates[size] - rates[base])
        ends = faster / situation.work_left_seconds if situation.work_left_seconds else 0.0
        if situation.work_left_seconds is not None and situation.work_left_seconds <= 0:
            worth[size] = 0.0
            continue
        kept = _survives(situation, fallen, situation.losing.mean) * max(0.0, worth[fallen])
        gain = faster - 1 + brought * (kept - situation.losing.mean)
        clock = rates[size] + ends
        worth[size] = gain / clock if clock > 0 else math.copysign(math.inf, gain) if gain else 0.0
    return worth


def _survives(situation: Situation, size: int, stands_seconds: float) -> float:
    """Probability that a gang of `size` is not interrupted while it stands."""
    return math.exp(-situation.interruptions_per_hour[size] / 3600 * stands_seconds)


def _in_the_long_run(situation: Situation, size: int) -> tuple[float, int]:
    """Steps of a gang that always has this size, in the time that interruptions leave; of equal sizes the smallest."""
    return situation.speeds[size] * _survives(situation, size, situation.losing.mean), -size


def _anew(situation: Situation, sizes: Sequence[int]) -> Verdict:
    """The gang forms anyway: joining costs nothing."""
    best = max(sizes, key=lambda size: _in_the_long_run(situation, size))
    why = f"{_workers(situation.available)} can train and the gang forms anyway"
    if best < sizes[-1]:
        times = situation.speeds[sizes[-1]] / situation.speeds[best]
        why += f"; {sizes[-1]} would get less done, at {times:.2f} times the speed and with more interruptions"
    return Verdict(best, f"a gang of {best}: {why}")


def _wait(situation: Situation, best: int, worth: Mapping[int, float]) -> Verdict | None:
    """Whether to wait for standbys that are warming."""
    cost = situation.joining.mean
    lost_a_second = situation.speeds[best] / situation.speeds[situation.present] - 1
    if lost_a_second <= 0:
        return None
    most = min(cost / lost_a_second, LONGEST_WAIT_SECONDS)
    left = most - situation.waited_seconds
    for number, expected in enumerate(sorted(situation.warming_seconds), start=1):
        later = max((size for size in situation.allowed if best < size <= situation.available + number), default=None)
        if later is not None and expected < left and worth[later] > cost:
            return Verdict(
                situation.present,
                f"wait up to {seconds(left)} for a standby that is expected in {seconds(max(0.0, expected))}: one transition "
                f"to {later} workers instead of two",
                left,
            )
    return None


def _told(situation: Situation, size: int, worth: float) -> str:
    faster = situation.speeds[size] / situation.speeds[situation.present]
    rate = situation.interruptions_per_hour[size]
    often = f"interrupted once in {seconds(3600 / rate)}" if rate > 0 else "never interrupted"
    end = situation.work_left_seconds
    left = "" if end is None else f", with work for {seconds(max(0.0, end))} left"
    sign = "-" if worth < 0 else ""
    value = f"{sign}{seconds(abs(worth))}" if math.isfinite(worth) else f"{sign}any time"
    return (
        f"{size} are worth {value} of training at this size, at {faster:.2f} times the speed and {often}{left}; "
        f"joining costs {situation.joining}"
    )


def _workers(count: int) -> str:
    return "1 worker" if count == 1 else f"{count} workers"


class ResizeSense:
    """`decide` with a memory: what a gang measured of its steps, transitions and interruptions, for the engine that runs it.

    Instants are nanoseconds of one monotonic clock, the caller's. Not thread-safe.
    """

    def __init__(
        self,
        allowed: Sequence[int],
        *,
        by_workers: bool = False,
        observed: Mapping[CapacityType, Observed] | None = None,
        workers_per_machine: int = 1,
    ) -> None:
        """`allowed`: numbers of workers, ascending. `by_workers`: see `Speed`. `observed`: what is known beforehand of
        interruptions."""
        self._allowed = tuple(allowed)
        self._workers_per_machine = workers_per_machine
        self._speed = Speed(by_workers=by_workers)
        self._joining, self._losing = Durations(*JOIN_PRIOR), Durations(*LOSS_PRIOR)
        self._observed = dict(observed or {})
        self._newest: dict[CapacityType, deque[float]] = {}
        self._machines: Mapping[CapacityType, int] = {}
        self._workers = 0
        self._counted_ns: int | None = None
        self._changed_ns: int | None = None
        self._possible_since_ns: int | None = None
        self._steps_left: int | None = None

    @property
    def joining(self) -> Span:
        """What a transition that was chosen costs."""
        return self._joining.span

    @property
    def losing(self) -> Span:
        return self._losing.span

    def typical_step_seconds(self, workers: int) -> float | None:
        """Of a gang of so many; None: none was seen."""
        return self._speed.typical_seconds(workers)

    @property
    def observed(self) -> Mapping[CapacityType, Observed]:
        """What is known of interruptions by now, for who keeps it."""
        return dict(self._observed)

    def world(self, now_ns: int, workers: int, machines: Mapping[CapacityType, int]) -> None:
        """A new world trains: its workers, and its machines by how they are rented."""
        self._lived(now_ns)
        self._workers, self._machines = workers, dict(machines)
        self._changed_ns, self._possible_since_ns = now_ns, None

    def step(self, now_ns: int, workers: int, step_seconds: float, steps_left: int | None = None) -> None:
        """A step of this world ended; `steps_left` after it, None when unknown."""
        self._lived(now_ns)
        self._speed.observe(now_ns, workers, step_seconds)
        self._steps_left = steps_left

    def joined(self, dead_seconds: float) -> None:
        """A transition between two steps is over, chosen or after a notice; the gang made no step for so long."""
        self._joining.observe(dead_seconds)

    def lost(self, dead_seconds: float) -> None:
        """A transition after a loss is over; the gang stood, and repeated steps, for so long."""
        self._losing.observe(dead_seconds)

    def interrupted(self, now_ns: int, capacity_type: CapacityType) -> None:
        """A machine of this kind, or a process on it, was lost or given notice."""
        self._lived(now_ns)
        seen = self._observed.get(capacity_type, Observed()) + Observed(1)
        self._observed[capacity_type] = seen
        self._newest.setdefault(capacity_type, deque(maxlen=RECENT)).append(seen.machine_hours)

    def worth_growing(self, now_ns: int, present: int, possible: int, warming_seconds: Sequence[float] = ()) -> Verdict:
        """Whether a gang of `present` workers should take in others, when `possible` could train in all. `warming_seconds`:
        until each standby that is not ready yet is expected to be."""
        larger = any(present < size <= possible for size in self._allowed)
        if not larger:
            self._possible_since_ns = None
        elif self._possible_since_ns is None:
            self._possible_since_ns = now_ns
        return decide(self.situation(now_ns, present, possible, warming_seconds))

    def situation(
        self,
        now_ns: int,
        present: int,
        possible: int,
        warming_seconds: Sequence[float] = (),
    ) -> Situation:
        """What is known, as a value."""
        sizes = {*self._allowed, *([present] if present > 0 else [])}
        speeds = self._speed.at(now_ns, sizes)
        left = None
        typical = self._speed.typical_seconds(present)
        if self._steps_left is not None and typical is not None:
            left = self._steps_left * typical
        return Situation(
            present=present,
            available=possible,
            allowed=self._allowed,
            speeds=speeds,
            interruptions_per_hour={size: self._interruptions(size) for size in sizes},
            joining=self.joining,
            losing=self.losing,
            work_left_seconds=left,
            since_change_seconds=_since(now_ns, self._changed_ns),
            warming_seconds=tuple(warming_seconds),
            waited_seconds=_since(now_ns, self._possible_since_ns) or 0.0,
            workers_per_machine=self._workers_per_machine,
        )

    def _interruptions(self, workers: int) -> float:
        """An hour, of a gang of `workers`, on machines mixed as those of now."""
        if not self._machines or not self._workers:
            machines: Mapping[CapacityType, float] = {CapacityType.ON_DEMAND: workers / self._workers_per_machine}
        else:
            machines = {kind: count * workers / self._workers for kind, count in self._machines.items()}
        return sum(
            self._machine_rate(kind) * math.pow(count, PRIORS[kind].spread)
            for kind, count in machines.items()
            if count > 0
        )

    def _machine_rate(self, kind: CapacityType) -> float:
        """Interruptions an hour of one machine: what is expected, or the newest ones alone when they came faster."""
        seen = self._observed.get(kind, Observed())
        expected = hazard(kind, 1, seen).per_hour
        newest = self._newest.get(kind, deque())
        if len(newest) < FEWEST_RECENT:
            return expected
        hours = seen.machine_hours - newest[0]
        return max(expected, (len(newest) - 1) / max(hours, 1e-6))

    def _lived(self, now_ns: int) -> None:
        if self._counted_ns is not None and now_ns > self._counted_ns:
            hours = (now_ns - self._counted_ns) / NANOSECONDS_PER_HOUR
            for kind, count in self._machines.items():
                if count > 0:
                    seen = Observed(0, exposure_hours(kind, count, hours))
                    self._observed[kind] = self._observed.get(kind, Observed()) + seen
        self._counted_ns = now_ns


def _since(now_ns: int, then_ns: int | None) -> float | None:
    return None if then_ns is None else max(0.0, (now_ns - then_ns) / NANOSECONDS)
