"""Price files: what is read, and that every wrong form is told with its place."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest

from orchestrator.accounting import Billing, PriceBook, parse_price_file
from orchestrator.domain.errors import InvalidSpec
from orchestrator.domain.offerings import CapacityType

WRONG_PRICES: tuple[Any, ...] = ("free", 0, "0.000", -1, True, [], float("nan"), float("inf"), "1e-10", "1e999999", "")


def price_file(**changes: Any) -> dict[str, Any]:
    """A good price file with changes; a value of `...` takes the field away."""
    document: dict[str, Any] = {
        "source": "a price list",
        "date": date(2026, 11, 1),
        "billed": False,
        "local": "small",
        "billing": {"granularitySeconds": 1, "minimumSeconds": 60},
        "offers": [
            {"instanceType": "small", "zone": "a", "gpus": 1, "onDemandUSD": "3.06", "spotUSD": "0.918"},
            {"instanceType": "small", "zone": "b", "gpus": 1, "onDemandUSD": 3.1, "spotUSD": 0.5},
            {"instanceType": "large", "onDemandUSD": 12},
        ],
    }
    return {key: value for key, value in (document | changes).items() if value is not ...}


def problems_of(document: Any) -> list[tuple[str, str]]:
    with pytest.raises(InvalidSpec) as caught:
        parse_price_file(document, "prices.yaml")
    assert all(problem.file == "prices.yaml" for problem in caught.value.problems)
    return [(problem.path, problem.what) for problem in caught.value.problems]


def test_a_good_file_is_read_exactly() -> None:
    """Prices become integer nano-dollars; the cheapest zone is offered; an example says that it is one."""
    book = parse_price_file(price_file(), "prices.yaml")
    local = book.local_offering()
    assert (local.price_nanodollars_per_hour, local.zone, local.billed) == (3_060_000_000, "a", False)
    assert local.price_source == "a price list, 2026-11-01 (example)"
    spot = book.offering("small", CapacityType.SPOT)
    assert (spot.price_nanodollars_per_hour, spot.zone) == (500_000_000, "b")
    assert spot.list_price_nanodollars_per_hour == 3_100_000_000
    assert book.billing == Billing(1, 60)


def test_what_a_file_leaves_out_is_unknown_and_not_zero() -> None:
    """A kind or capacity type without a price has none, and says where it was looked for."""
    book = parse_price_file(price_file(local=..., billing=..., billed=...), "prices.yaml")
    missing, absent = book.offering("large", CapacityType.SPOT), book.offering("huge", CapacityType.ON_DEMAND)
    for offering in (missing, absent, book.local_offering()):
        assert offering.price_nanodollars_per_hour is None
        assert offering.list_price_nanodollars_per_hour is None
    assert missing.price_source == "no spot price of large in a price list (2026-11-01)"
    assert (book.billed, book.billing) == (True, Billing(1, 0))
    assert isinstance(book, PriceBook)


@pytest.mark.parametrize("document", [None, [], "prices", 3])
def test_a_file_that_is_no_mapping_is_refused(document: Any) -> None:
    """A price file of another shape gives one problem."""
    assert problems_of(document) == [("", "a price file is a mapping")]


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"source": ...}, "source"),
        ({"source": 3}, "source"),
        ({"date": ...}, "date"),
        ({"date": "yesterday"}, "date"),
        ({"date": 20261101}, "date"),
        ({"billed": "no"}, "billed"),
        ({"billing": []}, "billing"),
        ({"billing": {"every": 1}}, "billing"),
        ({"billing": {"granularitySeconds": 0}}, "billing.granularitySeconds"),
        ({"billing": {"granularitySeconds": True}}, "billing.granularitySeconds"),
        ({"billing": {"minimumSeconds": -1}}, "billing.minimumSeconds"),
        ({"billing": {"minimumSeconds": "60"}}, "billing.minimumSeconds"),
        ({"local": "tiny"}, "local"),
        ({"local": ["small"]}, "local"),
        ({"local": {}}, "local"),
        ({"price": 3}, "price"),
        ({3: 4}, "3"),
        ({None: 4}, "None"),
        ({"offers": [], "local": ...}, "offers"),
        ({"offers": {}, "local": ...}, "offers"),
    ],
)
def test_a_wrong_field_is_told_with_its_place(changes: dict[Any, Any], path: str) -> None:
    """Each wrong field gives exactly one problem, at its path."""
    document = {key: value for key, value in (price_file() | changes).items() if value is not ...}
    assert [where for where, _ in problems_of(document)] == [path]


@pytest.mark.parametrize(
    ("offer", "path"),
    [
        ("small", "offers[1]"),
        ({}, "offers[1].instanceType"),
        ({"instanceType": 3}, "offers[1].instanceType"),
        ({"instanceType": "x", "zone": None}, "offers[1].zone"),
        ({"instanceType": "x", "gpus": -1}, "offers[1].gpus"),
        ({"instanceType": "x", "gpus": True}, "offers[1].gpus"),
        ({"instanceType": "x", "cost": 1}, "offers[1].cost"),
        ({"instanceType": "x", 1: 1}, "offers[1].1"),
        *(({"instanceType": "x", "spotUSD": price}, "offers[1].spotUSD") for price in WRONG_PRICES),
    ],
)
def test_a_wrong_offer_is_told_with_its_place(offer: Any, path: str) -> None:
    """Each wrong offer gives exactly one problem, at its path, and the good one beside it none."""
    good = {"instanceType": "small", "onDemandUSD": 1}
    assert [where for where, _ in problems_of(price_file(offers=[good, offer]))] == [path]


def test_all_problems_come_at_once() -> None:
    """A file with several mistakes names each of them; an offer that is wrong elsewhere still counts as named."""
    document = price_file(source="", billed=3, offers=[{"instanceType": "small", "gpus": "one"}], z=1, a=1)
    assert [path for path, _ in problems_of(document)] == ["a", "z", "source", "billed", "offers[0].gpus"]


def test_an_offer_may_have_a_source_and_a_date_of_its_own() -> None:
    """What an offer says of its price's origin is what the machine's price carries; the file's holds for the others."""
    own = {"instanceType": "old", "onDemandUSD": 1, "source": "an archive", "date": "2023-03-10"}
    book = parse_price_file(price_file(offers=[own, {"instanceType": "small", "onDemandUSD": 2}]), "prices.yaml")
    assert book.offering("old", CapacityType.ON_DEMAND).price_source == "an archive, 2023-03-10 (example)"
    assert book.offering("small", CapacityType.ON_DEMAND).price_source == "a price list, 2026-11-01 (example)"
    assert [offer["date"] for offer in book.to_document()["offers"]] == ["2023-03-10", "2026-11-01"]


@pytest.mark.parametrize("wrong", [{"source": ""}, {"source": 3}, {"date": "yesterday"}, {"date": 5}])
def test_a_wrong_origin_of_an_offer_is_told(wrong: dict[str, Any]) -> None:
    """An empty source, or a date that is none, is a problem with its place."""
    offer = {"instanceType": "small", "onDemandUSD": 1, **wrong}
    ((path, _),) = problems_of(price_file(offers=[offer]))
    assert path == f"offers[0].{next(iter(wrong))}"
