"""One job on one market: the world that a capacity policy acts in. Event-driven: it stops at changes of the market, ends of
restart overheads, the end of the work, and when the policy wants to be asked again.

What is held is paid for by the second, in segments of one place, number of workers and price; a segment costs the cumulative
floor that the ledger of real jobs uses. A change of what is held pays for one restart overhead that does no work. A spot place
that offers fewer workers than are held takes the rest away at once; a rigid gang then loses all. Work is counted in
worker-nanoseconds, an integer, so nothing is lost by rounding.

`Trouble` makes restarts take longer or shorter, on-demand machines sell out for a while, and the work other than was thought.

Limits: one mean overhead for every place; on-demand machines have the first zone's name; a policy hears of a market's change at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from orchestrator.domain.errors import InternalError, UsageError
from orchestrator.domain.money import cumulative_cost
from orchestrator.domain.offerings import CapacityType
from orchestrator.policy.capacity import CapacityPolicy, Holding, Offer, RestartOverhead, Situation
from orchestrator.simulation.market import HOUR_NS, SECOND_NS, Market
from orchestrator.simulation.trouble import NO_TROUBLE, Trouble

LEAST_WAIT_NS = SECOND_NS // 1000
"""A policy that wants to be asked again sooner is asked then: decisions come to an end."""
Place = tuple[str, CapacityType]


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be done, in ns."""

    work_ns: int
    """By the whole gang."""
    deadline_ns: int
    """After the start."""
    overhead_ns: int
    notice: bool = True
    """A preemption is told early enough to save; else what was done since the last checkpoint is lost."""
    checkpoint_interval_ns: int | None = None

    def check(self) -> None:
        """Raises UsageError for a job that cannot be."""
        if self.deadline_ns < self.work_ns:
            raise UsageError(
                f"the deadline is {self.deadline_ns / self.work_ns:.3g} times the compute",
                hint="a deadline ratio is 1 or more",
            )
        if self.overhead_ns >= self.deadline_ns:
            raise UsageError(
                f"a restart overhead of {self.overhead_ns / HOUR_NS:g} h is longer than the deadline of {self.deadline_ns / HOUR_NS:g} h",
                hint="lower --restart-overhead",
            )
        if not self.notice and not self.checkpoint_interval_ns:
            raise UsageError("without a notice, work is lost", hint="say how often it is saved: --checkpoint-interval")


class Held(NamedTuple):
    """A segment: so many workers in one place at one price; the price is that of them all."""

    start_ns: int
    end_ns: int
    zone: str
    capacity_type: CapacityType
    workers: int
    price_nanodollars_per_hour: int

    @property
    def cost_nanodollars(self) -> int:
        return int(cumulative_cost(self.price_nanodollars_per_hour, self.end_ns - self.start_ns))


@dataclass(frozen=True, slots=True)
class Run:
    """What came of a job. Times are ns since the first tick of the trace."""

    start_ns: int
    segments: tuple[Held, ...]
    finish_ns: int | None
    """None: the policy held nothing any more, with work left."""
    met_deadline: bool
    preemptions: int
    lost_ns: int
    """Work that was lost, in ns of the whole gang."""
    decisions: int
    warned_ns: int | None = None
    """When the policy first said that the deadline is at risk."""
    known_ns: int | None = None
    """When the policy got to know how much work there is, where it was wrong about it."""
    spare_ns: int | None = None
    """What on-demand machines, rented then, would have had to spare by the high estimate of a restart; negative: too late."""

    @property
    def cost_nanodollars(self) -> int:
        return sum(segment.cost_nanodollars for segment in self.segments)


def simulate(market: Market, job: Job, policy: CapacityPolicy, start_ns: int, trouble: Trouble = NO_TROUBLE) -> Run:
    """Run one job under one policy. Raises InternalError when the policy asks for what is not offered."""
    job.check()
    return _World(market, job, policy, start_ns, trouble).run()


class _World:
    def __init__(self, market: Market, job: Job, policy: CapacityPolicy, start_ns: int, trouble: Trouble) -> None:
        self._market, self._job, self._policy = market, job, policy
        self._start_ns = self._now_ns = start_ns
        self._deadline_ns = start_ns + job.deadline_ns
        self._counts, self._prices = market.at(start_ns)
        self._believed = 1.0 if trouble.known_at <= 0 else trouble.work_believed
        self._known_at = round(job.work_ns * market.workers_max * trouble.known_at)
        self._lengths = trouble.overheads(job.overhead_ns, start_ns)
        horizon_ns = start_ns + 4 * job.deadline_ns
        self._stock = [instant for outage in trouble.stock_outs(start_ns, horizon_ns) for instant in outage]
        """When on-demand machines sell out and come back, in turn; what is over is taken away."""
        self._sold_out = False
        self._warned_ns: int | None = None
        self._known_ns: int | None = None
        self._spare_ns: int | None = None
        self._next = market.first_after(start_ns)
        self._histories = market.histories(start_ns)
        self._zone_of = {zone: number for number, zone in enumerate(market.zones)}
        self._offers = self._offered()
        self._work = job.work_ns * market.workers_max
        self._done = self._unsaved = 0
        """Worker-ns; `_unsaved` of the done is not in a checkpoint."""
        self._held: dict[Place, tuple[int, int, int]] = {}
        """Workers, since when, and since when at this price."""
        self._paid: dict[Place, int] = {}
        """What the whole gang would cost there an hour, of each place that is held."""
        self._sum = self._summed = 0
        """Nano-dollars of the first `_summed` segments."""
        self._workers = 0
        self._ready_ns: int | None = None
        """When the restart under way is over."""
        self._restart_ns = 0
        self._segments: list[Held] = []
        self._preemptions = self._lost = self._decisions = 0
        self._overhead = RestartOverhead(job.overhead_ns / 1e9, trouble.high_ns(job.overhead_ns) / 1e9)

    def run(self) -> Run:
        changes, size = self._market.changes, len(self._market.changes)
        ended = self._market.length_ns
        while True:
            until_ns = self._decide()
            while True:
                stop_ns = until_ns
                if self._next < size and changes[self._next].at_ns < ended:
                    change_ns = changes[self._next].at_ns
                    stop_ns = change_ns if stop_ns is None else min(stop_ns, change_ns)
                elif self._now_ns < ended:
                    stop_ns = ended if stop_ns is None else min(stop_ns, ended)
                if self._stock:
                    stop_ns = self._stock[0] if stop_ns is None else min(stop_ns, self._stock[0])
                if self._ready_ns is not None:
                    stop_ns = self._ready_ns if stop_ns is None else min(stop_ns, self._ready_ns)
                elif self._workers >= self._market.workers_min:
                    told = self._work if self._believed == 1.0 else min(self._work, max(self._known_at, self._done + 1))
                    finish_ns = self._now_ns - (self._done - told) // self._workers
                    stop_ns = finish_ns if stop_ns is None else min(stop_ns, finish_ns)
                if stop_ns is None:
                    return self._result(None)
                self._advance(stop_ns)
                if self._done >= self._work:
                    self._release_all()
                    return self._result(self._now_ns)
                asked = until_ns is not None and stop_ns >= until_ns
                if self._ready_ns is not None and self._now_ns >= self._ready_ns:
                    self._ready_ns, asked = None, True
                asked |= self._take_trouble()
                if self._take_changes() or asked:
                    break

    def _result(self, finish_ns: int | None) -> Run:
        met = finish_ns is not None and finish_ns <= self._deadline_ns
        lost_ns = self._lost // self._market.workers_max
        segments = tuple(sorted(self._segments))
        return Run(
            self._start_ns,
            segments,
            finish_ns,
            met,
            self._preemptions,
            lost_ns,
            self._decisions,
            self._warned_ns,
            self._known_ns,
            self._spare_ns,
        )

    # --- time ---------------------------------------------------------------------------------------------------------

    def _advance(self, to_ns: int) -> None:
        if self._ready_ns is None and self._workers >= self._market.workers_min:
            done = min(self._workers * (to_ns - self._now_ns), self._work - self._done)
            self._done += done
            if not self._job.notice:
                interval = self._job.checkpoint_interval_ns or 1
                self._unsaved = (self._unsaved + done) % (interval * self._workers)
        self._now_ns = to_ns

    def _take_trouble(self) -> bool:
        """Whether on-demand machines sold out or came back, or the work is known from now on."""
        found = False
        while self._stock and self._stock[0] <= self._now_ns:
            del self._stock[0]
            self._sold_out = not self._sold_out
            found = True
        if self._believed != 1.0 and self._done >= self._known_at:
            self._believed, found = 1.0, True
            self._known_ns = self._now_ns
            self._spare_ns = self._deadline_ns - self._now_ns - self._on_demand_needs()
        if found:
            self._offers = self._offered()
        return found

    def _take_changes(self) -> bool:
        """Take in what changed at this instant; whether anything did."""
        market, first = self._market, self._next
        changes = market.changes
        while self._next < len(changes) and changes[self._next].at_ns <= self._now_ns < market.length_ns:
            change = changes[self._next]
            self._next += 1
            self._change(change.zone, change.workers, change.price)
        over = self._now_ns == market.length_ns and any(self._counts)
        if over:  # nothing is known of what comes after the trace: no spot
            for zone in range(len(self._counts)):
                self._change(zone, 0, self._prices[zone])
        if self._next == first and not over:
            return False
        self._offers = self._offered()
        return True

    def _change(self, zone: int, count: int, price: int) -> None:
        name = self._market.zones[zone]
        if count != self._counts[zone]:
            self._counts[zone] = count
            self._histories[name].observe(self._now_ns, count)
        dearer, self._prices[zone] = price != self._prices[zone], price
        place = (name, CapacityType.SPOT)
        held = self._held.get(place)
        if held is None:
            return
        workers, since_ns, _ = held
        if count < workers:
            self._close(place)
            self._preemptions += 1
            if not self._job.notice:
                self._done -= self._unsaved
                self._lost += self._unsaved
            self._unsaved = 0
            left = 0 if self._market.rigid else count
            self._paid[place] = price
            if left:
                self._held[place] = (left, since_ns, self._now_ns)
            self._workers -= workers - left
            self._restart()
        elif dearer:
            self._close(place)
            self._paid[place] = price
            self._held[place] = (workers, since_ns, self._now_ns)

    # --- what is held -------------------------------------------------------------------------------------------------

    def _close(self, place: Place) -> None:
        """End the segment of a place, at the price that it had until now."""
        held, _, began_ns = self._held.pop(place)
        if began_ns < self._now_ns:
            self._segments.append(
                Held(began_ns, self._now_ns, place[0], place[1], held, self._market.price_of(self._paid[place], held))
            )

    def _release_all(self) -> None:
        for place in list(self._held):
            self._close(place)
        self._workers = 0

    def _restart(self) -> None:
        self._restart_ns = self._now_ns
        self._ready_ns = self._now_ns + next(self._lengths) if self._held else None

    def _offered(self) -> tuple[Offer, ...]:
        market = self._market
        most = market.workers_max
        return (
            *(
                Offer(zone, CapacityType.SPOT, price // most, count)
                for zone, price, count in zip(market.zones, self._prices, self._counts, strict=True)
            ),
            Offer(market.zones[0], CapacityType.ON_DEMAND, market.on_demand // most, self._on_demand_room()),
        )

    def _on_demand_needs(self) -> int:
        """ns in which on-demand machines do what is left from now on, those that work already without a start."""
        left = (self._work - self._done) // self._market.workers_max
        whole = self._on_demand_held() >= self._market.workers_max and self._ready_ns is None
        return left + (0 if whole else round(self._overhead.high_seconds * 1e9))

    def _on_demand_held(self) -> int:
        return sum(held[0] for place, held in self._held.items() if place[1] is CapacityType.ON_DEMAND)

    def _on_demand_room(self) -> int:
        """Workers that could be held on demand, those that are held among them."""
        if not self._sold_out:
            return self._market.workers_max
        return self._on_demand_held()

    # --- the policy ---------------------------------------------------------------------------------------------------

    def _decide(self) -> int | None:
        """Ask the policy and do as it says; when it wants to be asked again."""
        market, job, now_ns = self._market, self._job, self._now_ns
        self._decisions += 1
        if self._sold_out:
            self._offers = self._offered()
        left = self._work - self._done
        if self._believed != 1.0:
            left = max(1, round(self._work * self._believed) - self._done)
        decision = self._policy.decide(
            Situation(
                now_ns=now_ns,
                began_ns=self._start_ns,
                work_seconds=job.work_ns * self._believed / 1e9,
                work_left_seconds=left / market.workers_max / 1e9,
                deadline_ns=self._deadline_ns,
                offers=self._offers,
                held=[Holding(zone, kind, held[0], held[1]) for (zone, kind), held in self._held.items()],
                overhead=self._overhead,
                restarting_since_ns=None if self._ready_ns is None else self._restart_ns,
                workers_min=market.workers_min,
                workers_max=market.workers_max,
                spent_nanodollars=self._spent(),
                history=self._histories,
            )
        )
        if decision.deadline_at_risk is not None and self._warned_ns is None:
            self._warned_ns = now_ns
        wanted = {(target.zone, target.capacity_type): target.workers for target in decision.targets if target.workers}
        if wanted != {place: held[0] for place, held in self._held.items()}:
            self._hold(wanted)
        until_ns = decision.until_ns
        return None if until_ns is None else max(until_ns, now_ns + LEAST_WAIT_NS)

    def _hold(self, wanted: dict[Place, int]) -> None:
        for place in list(self._held):
            if self._held[place][0] != wanted.get(place):
                self._close(place)
        for place, workers in wanted.items():
            if place in self._held:
                continue
            zone = self._zone_of.get(place[0])
            spot = place[1] is CapacityType.SPOT
            if zone is None or workers > (self._counts[zone] if spot else self._on_demand_room()):
                raise InternalError(f"{self._policy.name} asks for {workers} workers at {place}, which are not offered")
            self._paid[place] = self._prices[zone] if spot else self._market.on_demand
            self._held[place] = (workers, self._now_ns, self._now_ns)
        self._workers = sum(held[0] for held in self._held.values())
        self._unsaved = 0  # a change that is chosen saves first
        self._restart()

    def _spent(self) -> int:
        """In nano-dollars, until now."""
        while self._summed < len(self._segments):
            self._sum += self._segments[self._summed].cost_nanodollars
            self._summed += 1
        spent = self._sum
        for place, (workers, _, began_ns) in self._held.items():
            price = self._market.price_of(self._paid[place], workers)
            spent += int(cumulative_cost(price, self._now_ns - began_ns))
        return spent
