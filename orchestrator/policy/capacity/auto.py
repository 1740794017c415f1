"""`auto`: waits, bridges and changes back where a stochastic programme over the market's habits says that it is cheapest.

`programme` gives four thresholds of slack for the zone's rates (`rates`): they depend on the age of the gap or offer, on the work
left, on the restart overhead and on the price. Around them stand rules that do not depend on any estimate of the market: the safety
net of `places`, and a cap on what the job may cost (`places.CAP`): a start on spot is made only if on-demand machines after it would still
keep the whole bill under the cap.

Several zones: a gap is over when any of them offers spot, and a loss is a gap only if none other does. Among offers the
cheapest for an hour of work is taken, restarts included; a zone is left for a cheaper one only when what it saves until the next
loss pays for the restart.

Limits: zones are taken as independent; a programme is for a whole gang, and an elastic one takes what spot offers without adding
on-demand machines to it; prices are those of now.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.domain.offerings import CapacityType
from orchestrator.policy.capacity.contract import Cause, Decision, Offer, Situation
from orchestrator.policy.capacity.history import AGE_EDGES_SECONDS, SpotHistory, age_class
from orchestrator.policy.capacity.places import Market
from orchestrator.policy.capacity.programme import SLACK_STEPS, Answer, Question, solve
from orchestrator.policy.capacity.rates import CLASS_HOURS, Prior, Rates
from orchestrator.policy.durations import seconds as told

if TYPE_CHECKING:
    from orchestrator.policy.capacity.programme import Array

GRAIN = 1.3
"""Rates are rounded to powers of this, so that programmes are shared."""
REMEMBERED = 512
"""Answers that are kept, 30 KB each."""
USUAL_PRICE = 1 / 3
"""Of spot next to on-demand, where a price is not known."""
LOOK_SECONDS = 900.0
"""A threshold that falls as the work goes on is looked at so often."""


@dataclass(frozen=True, slots=True)
class _Zone:
    offer: Offer
    rates: Rates
    price: float
    """Next to on-demand, which is 1."""
    per_hour: float
    """On-demand hours that an hour of work costs here, restarts included."""


class Auto:
    """The stochastic programme and its guards."""

    name = "auto"

    def __init__(self, without: Sequence[str] = ()) -> None:
        """`without`: recorded markets that the prior may not know (`Prior`)."""
        self._prior = Prior(without)
        self._answers: OrderedDict[Question, Answer] = OrderedDict()

    def decide(self, situation: Situation) -> Decision:
        market = Market(situation)
        if (final := market.safety()) is not None:
            return final
        return _Look(self, market).decide()

    def rates(self, history: SpotHistory | None, workers: int) -> Rates:
        """Of one zone for a gang of so many workers."""
        return self._prior.rates((history or SpotHistory()).learned(workers))

    def answer(self, question: Question) -> Answer:
        """Solved once."""
        answer = self._answers.get(question)
        if answer is None:
            answer = self._answers[question] = solve(question)
            if len(self._answers) > REMEMBERED:
                self._answers.popitem(last=False)
        else:
            self._answers.move_to_end(question)
        return answer


class _Look:
    """One situation under `auto`."""

    def __init__(self, auto: Auto, market: Market) -> None:
        self.auto, self.market, self.situation = auto, market, market.situation
        self.overhead = max(1e-4, market.mean / 3600)
        self.whole = self.situation.workers_max
        demand = market.on_demand_offer
        self.on_demand_price = demand.price_nanodollars_per_hour if demand is not None else None
        self.rates = {zone: auto.rates(history, self.whole) for zone, history in self.situation.history.items()}
        self.zones = sorted((self._zone(offer) for offer in market.spot_offers), key=lambda zone: zone.per_hour)

    def _price(self, offer: Offer) -> float:
        if not self.on_demand_price or offer.price_nanodollars_per_hour is None:
            return USUAL_PRICE
        return offer.price_nanodollars_per_hour / self.on_demand_price

    def _zone(self, offer: Offer) -> _Zone:
        rates = self.rates.get(offer.zone) or self.auto.rates(None, self.whole)
        price = self._price(offer)
        lost = rates.up[self._class(offer.zone)] * self.overhead
        return _Zone(offer, rates, price, price * (1 + lost) + max(0.0, 1 - price) * lost)

    def _age(self, zone: str) -> float:
        history = self.situation.history.get(zone)
        return 0.0 if history is None else history.age_seconds(self.market.now_ns, self.whole)

    def _class(self, zone: str) -> int:
        return age_class(self._age(zone))

    # --- the programme ------------------------------------------------------------------------------------------------

    def _answer(self, best: Rates | None, price: float) -> Answer:
        """For all zones as one market; `best`: the rates of the zone whose offer it is about, None for a gap."""
        rates, elsewhere = self._together(best)
        work = max(self.situation.work_seconds, self.market.work_left) / 3600
        return self.auto.answer(
            Question(
                tuple(_rounded(rate, GRAIN) for rate in rates.down),
                tuple(_rounded(rate, GRAIN) for rate in rates.up),
                CLASS_HOURS,
                _rounded(self.overhead, 1.05),
                min(_rounded(price, 1.02), 1.0),
                max(0.05, _rounded(work * 1.02, 1.05)),
                tuple(_rounded(rate, GRAIN) for rate in elsewhere),
            )
        )

    def _together(self, best: Rates | None) -> tuple[Rates, tuple[float, ...]]:
        """Of all zones as one market: gaps end when any zone comes back; a loss is a gap when no other zone is up, and else a
        move. The rates of moves are empty with one zone."""
        known = list(self.rates.values()) or [self.auto.rates(None, self.whole)]
        if len(known) == 1:
            return known[0], ()
        up = best or max(known, key=_share_up)
        others_down = math.prod(1 - _share_up(rates) for rates in known if rates is not up)
        kinds = range(len(up.down))
        together = Rates(
            tuple(sum(rates.down[k] for rates in known) for k in kinds),
            tuple(max(1e-3, up.up[k] * others_down) for k in kinds),
        )
        return together, tuple(max(1e-3, up.up[k] * (1 - others_down)) for k in kinds)

    def _last_price(self) -> float:
        """The cheapest price that any zone tells, sold out or not."""
        prices = [
            self._price(offer)
            for offer in self.situation.offers
            if offer.capacity_type is CapacityType.SPOT and offer.price_nanodollars_per_hour is not None
        ]
        return min(prices, default=USUAL_PRICE)

    # --- decisions ----------------------------------------------------------------------------------------------------

    def decide(self) -> Decision:
        market = self.market
        if not self.zones:
            return self._gap()
        best = self.zones[0]
        held = next((zone for zone in self.zones if zone.offer.zone in {one.zone for one in market.spot_held}), None)
        if held is not None:
            return self._on_spot(held, best)
        return self._offered(best)

    def _gap(self) -> Decision:
        market = self.market
        answer = self._answer(None, self._last_price())
        ages = [self._age(zone) for zone in self.rates] or [0.0]
        age = min(ages)
        on_demand = bool(market.on_demand_held)
        table = answer.drop if on_demand else answer.wait
        limit = self._limit(answer, table, age_class(age))
        slack = market.slack / 3600
        figures = f"slack {told(market.slack)}, threshold {told(limit * 3600)} in a gap of {told(age)}"
        until = _next_class(age)
        allowed = not on_demand or (market.may_wait and market.work_left > market.mean and market.within_cap(None))
        if slack > limit and allowed:
            return market.wait(
                f"no spot is offered, and waiting is the cheaper: {figures}", min(until, (slack - limit) * 3600 + 0.001)
            )
        if on_demand:
            return market.on_demand(
                Cause.ON_DEMAND_KEPT,
                f"no spot is offered, and giving on-demand machines back is the dearer or not safe: {figures}",
                min(until, LOOK_SECONDS),
            )
        return market.on_demand(Cause.BRIDGING, f"no spot is offered, and waiting is the dearer: {figures}", until)

    def _offered(self, best: _Zone) -> Decision:
        market = self.market
        answer = self._answer(best.rates, best.price)
        age = self._age(best.offer.zone)
        on_demand = bool(market.on_demand_held)
        limit = self._limit(answer, answer.hop if on_demand else answer.take, age_class(age))
        slack = market.slack / 3600
        figures = f"slack {told(market.slack)}, threshold {told(limit * 3600)} for an offer of {told(age)}"
        until = min(_next_class(age), LOOK_SECONDS)
        if best.price >= 1:
            return market.on_demand(Cause.ON_DEMAND_KEPT, "spot is no cheaper")
        if slack > limit and market.may_start_spot and self.market.within_cap(best.offer):
            return market.spot_now(Cause.SPOT_OFFERED, f"offered, and the cheaper: {figures}", best.offer)
        if on_demand:
            return market.on_demand(
                Cause.ON_DEMAND_KEPT, f"spot is offered, but a change is the dearer: {figures}", until
            )
        if not self.market.within_cap(best.offer) and market.slack > 2 * (market.mean + market.high):
            return market.on_demand(
                Cause.BRIDGING, "another start on spot could make the job dearer than on-demand machines", until
            )
        return market.on_demand(
            Cause.BEHIND, f"spot is offered, but another start could cost the deadline or more: {figures}", until
        )

    def _on_spot(self, held: _Zone, best: _Zone) -> Decision:
        market = self.market
        if market.worn_out:
            return market.on_demand(
                Cause.BRIDGING, "workers were taken, and more starts could make the job dearer than on-demand machines"
            )
        if best is not held and market.works and market.may_start_spot and self.market.within_cap(best.offer):
            lasts = min(1 / max(best.rates.up[self._class(best.offer.zone)], 1e-3), market.work_left / 3600)
            saves = (held.per_hour - best.per_hour) * lasts
            costs = self.overhead * max(1.0, best.price + (1 - best.price))
            if saves > costs and self._slack_is_plenty(best):
                why = f"{best.price:.2f} of on-demand instead of {held.price:.2f}, which pays for the restart"
                return market.spot_now(Cause.SPOT_OFFERED, why, best.offer, LOOK_SECONDS)
        return market.spot_now(
            Cause.SPOT_KEPT, "spot is kept until it is taken", held.offer, LOOK_SECONDS if len(self.rates) > 1 else None
        )

    def _slack_is_plenty(self, best: _Zone) -> bool:
        """Whether a gap would be waited out even after one more start."""
        answer = self._answer(best.rates, best.price)
        return self.market.slack / 3600 - self.overhead > self._limit(answer, answer.wait, 0)

    def _limit(self, answer: Answer, table: Array, age: int) -> float:
        limit = answer.at(table, age, self.market.work_left / 3600)
        return min(limit, SLACK_STEPS * answer.step_hours)


def _share_up(rates: Rates) -> float:
    """Of the time, by the mean length of spells."""
    up, down = _mean_hours(rates.up), _mean_hours(rates.down)
    return up / (up + down)


def _mean_hours(per_hour: Sequence[float]) -> float:
    mean, alive = 0.0, 1.0
    for rate, hours in zip(per_hour, CLASS_HOURS, strict=True):
        ends = -math.expm1(-rate * hours)
        mean += alive * ends / rate
        alive *= 1 - ends
    return mean


def _next_class(age_seconds: float) -> float:
    """Seconds until the spell is of another class."""
    return next((edge - age_seconds for edge in AGE_EDGES_SECONDS if edge > age_seconds), math.inf)


def _rounded(value: float, grain: float) -> float:
    return float(grain ** round(math.log(value) / math.log(grain)))
