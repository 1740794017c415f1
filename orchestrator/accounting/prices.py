"""The price book: what one machine of each kind costs an hour, from a dated file.

    source: AWS public price list, us-east-1
    date: 2026-11-01
    billed: false               # false: an example; nobody will bill these prices
    local: p3.2xlarge           # what one worker on this machine is priced as
    billing: {granularitySeconds: 1, minimumSeconds: 60}
    offers:
      - {instanceType: p3.2xlarge, zone: us-east-1a, gpus: 1, onDemandUSD: "3.06", spotUSD: "0.918"}

An offer may have a `source` and a `date` of its own. A price that is absent is unknown and stays unknown. A price of zero is refused: it is a feed's way of saying unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

from orchestrator.domain.errors import InvalidSpec, Problem
from orchestrator.domain.money import Nanodollars, parse_dollars, to_decimal_string
from orchestrator.domain.offerings import CapacityType, Offering


@dataclass(frozen=True, slots=True)
class Billing:
    """How the provider rounds: up to `granularity_seconds`, and at least `minimum_seconds` a machine."""

    granularity_seconds: int = 1
    minimum_seconds: int = 0


@dataclass(frozen=True, slots=True)
class Offer:
    instance_type: str
    zone: str
    gpus: int
    on_demand_nanodollars_per_hour: int | None
    spot_nanodollars_per_hour: int | None
    source: str
    as_of: str


@dataclass(frozen=True, slots=True)
class PriceBook:
    source: str
    as_of: str
    billed: bool
    local: str | None
    billing: Billing
    offers: tuple[Offer, ...]
    local_capacity_type: CapacityType = CapacityType.ON_DEMAND
    """How a worker on this machine is taken to be rented. No price file says so; a played market does."""

    def to_document(self) -> dict[str, Any]:
        """The book as the API and the command line show it; an unknown price is null."""

        def dollars(price: int | None) -> str | None:
            return to_decimal_string(None if price is None else Nanodollars(price))

        return {
            "source": self.source,
            "date": self.as_of,
            "billed": self.billed,
            "local": self.local,
            "billing": {
                "granularitySeconds": self.billing.granularity_seconds,
                "minimumSeconds": self.billing.minimum_seconds,
            },
            "offers": [
                {
                    "instanceType": offer.instance_type,
                    "zone": offer.zone,
                    "gpus": offer.gpus,
                    "onDemandUSD": dollars(offer.on_demand_nanodollars_per_hour),
                    "spotUSD": dollars(offer.spot_nanodollars_per_hour),
                    "source": offer.source,
                    "date": offer.as_of,
                }
                for offer in self.offers
            ],
        }

    def local_offering(self) -> Offering:
        """What one worker on this machine is priced as; of unknown price when the file does not say."""
        return self.offering(self.local or "local", self.local_capacity_type)

    def offering(self, instance_type: str, capacity_type: CapacityType) -> Offering:
        """The cheapest offer of this kind over the zones; of unknown price, with the reason, when there is none."""
        candidates = [offer for offer in self.offers if offer.instance_type == instance_type]
        priced = [(p, offer) for offer in candidates if (p := _price(offer, capacity_type)) is not None]
        if not priced:
            why = f"no {capacity_type} price of {instance_type} in {self.source} ({self.as_of})"
            zone = candidates[0].zone if candidates else "unknown"
            return Offering(instance_type, zone, capacity_type, None, None, why, self.billed)
        price, offer = min(priced, key=lambda pair: (pair[0], pair[1].zone))
        example = "" if self.billed else " (example)"
        source = f"{offer.source}, {offer.as_of}{example}"
        listed = offer.on_demand_nanodollars_per_hour
        return Offering(instance_type, offer.zone, capacity_type, price, listed, source, self.billed)


def _price(offer: Offer, capacity_type: CapacityType) -> int | None:
    if capacity_type is CapacityType.SPOT:
        return offer.spot_nanodollars_per_hour
    return offer.on_demand_nanodollars_per_hour


_TOP_KEYS = {"source", "date", "billed", "local", "billing", "offers"}
_OFFER_KEYS = {"instanceType", "zone", "gpus", "onDemandUSD", "spotUSD", "source", "date"}


def parse_price_file(document: Any, file: str) -> PriceBook:
    """The book of a parsed price file. Raises `InvalidSpec` with every problem found."""
    problems: list[Problem] = []

    def problem(path: str, what: str, hint: str | None = None) -> None:
        problems.append(Problem(path, what, hint, file))

    if not isinstance(document, Mapping):
        raise InvalidSpec(
            [Problem("", "a price file is a mapping", "see `orchestrate prices --help` for its form", file)]
        )
    for key in _strangers(document, _TOP_KEYS):
        problem(key, "is not a field of a price file", f"the fields are {', '.join(sorted(_TOP_KEYS))}")
    source = document.get("source")
    if not isinstance(source, str) or not source:
        problem("source", "is missing", "say where the prices come from")
    as_of = document.get("date")
    if not _is_date(as_of):
        problem("date", f"{as_of!r} is not a date", "write the day of the prices, such as 2026-11-01")
    billed = document.get("billed", True)
    if not isinstance(billed, bool):
        problem("billed", f"{billed!r} is not true or false", "write false for example prices")
    billing = _billing(document.get("billing", {}), problem)
    raw_offers = document.get("offers")
    offers: list[Offer] = []
    if not isinstance(raw_offers, list) or not raw_offers:
        problem("offers", "is empty", "list at least one offer")
    else:
        whole = str(source), str(as_of)
        found = (_offer(raw, f"offers[{place}]", problem, *whole) for place, raw in enumerate(raw_offers))
        offers = [offer for offer in found if offer is not None]
    local = document.get("local")
    if local is not None and not (isinstance(local, str) and local in _instance_types(raw_offers)):
        problem("local", f"{local!r} is not the instanceType of any offer", "name one of the offers, or leave it out")
    if problems:
        raise InvalidSpec(problems)
    return PriceBook(str(source), str(as_of), bool(billed), local, billing, tuple(offers))


def _strangers(mapping: Mapping[Any, Any], known: set[str]) -> list[str]:
    return sorted(str(key) for key in mapping if key not in known)


def _instance_types(raw_offers: Any) -> list[Any]:
    """Of all offers, also those with a problem of their own."""
    offers = raw_offers if isinstance(raw_offers, list) else []
    return [offer.get("instanceType") for offer in offers if isinstance(offer, Mapping)]


def _is_date(value: Any) -> bool:
    if isinstance(value, date):
        return True
    try:
        date.fromisoformat(value)
    except (TypeError, ValueError):
        return False
    return True


def _billing(raw: Any, problem: Any) -> Billing:
    if not isinstance(raw, Mapping) or set(raw) - {"granularitySeconds", "minimumSeconds"}:
        problem("billing", f"{raw!r} is not understood", "write {granularitySeconds: 1, minimumSeconds: 60}")
        return Billing()
    granularity, minimum = raw.get("granularitySeconds", 1), raw.get("minimumSeconds", 0)
    for key, value, least in (("granularitySeconds", granularity, 1), ("minimumSeconds", minimum, 0)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            problem(f"billing.{key}", f"{value!r} is not a whole number of at least {least}")
            return Billing()
    return Billing(granularity, minimum)


def _offer(raw: Any, path: str, problem: Any, source: str, as_of: str) -> Offer | None:
    """`source` and `as_of` of the file hold where the offer has none of its own."""
    if not isinstance(raw, Mapping):
        problem(path, f"{raw!r} is not a mapping", "write {instanceType: ..., zone: ..., onDemandUSD: ...}")
        return None
    for key in _strangers(raw, _OFFER_KEYS):
        problem(f"{path}.{key}", "is not a field of an offer", f"the fields are {', '.join(sorted(_OFFER_KEYS))}")
    instance_type, zone, gpus = raw.get("instanceType"), raw.get("zone", "unknown"), raw.get("gpus", 0)
    if not isinstance(instance_type, str) or not instance_type:
        problem(f"{path}.instanceType", "is missing")
        return None
    if not isinstance(zone, str) or not zone:
        problem(f"{path}.zone", f"{zone!r} is not the name of a zone")
        return None
    if not isinstance(gpus, int) or isinstance(gpus, bool) or gpus < 0:
        problem(f"{path}.gpus", f"{gpus!r} is not a whole number of at least 0")
        return None
    own_source, own_date = raw.get("source", source), raw.get("date", as_of)
    if not isinstance(own_source, str) or not own_source:
        problem(f"{path}.source", f"{own_source!r} does not say where the price comes from")
        return None
    if "date" in raw and not _is_date(own_date):
        problem(f"{path}.date", f"{own_date!r} is not a date", "write the day of the price, such as 2026-11-01")
        return None
    prices: list[int | None] = []
    for key in ("onDemandUSD", "spotUSD"):
        try:
            prices.append(_amount(raw.get(key)))
        except ValueError as error:
            problem(f"{path}.{key}", str(error))
            prices.append(None)
    return Offer(instance_type, zone, gpus, prices[0], prices[1], own_source, str(own_date))


def _amount(value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{value!r} is not an amount of dollars such as 3.06")
    amount = parse_dollars(str(value))
    if amount == 0:
        raise ValueError("a price of zero is refused; leave it out when it is unknown")
    return int(amount)
