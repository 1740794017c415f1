"""`spec.budget` and `capacity.maxPricePerHour`: what a job may cost, and what follows when it has. Pure.

The controller looks at every turn, at least once a second, at what each job that holds machines has cost by its ledger. A job
stops with a checkpoint first, so it may cost what saving and stopping take beyond its limit. What a provider bills at least for
a machine counts from the moment that it is there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.accounting import PriceBook
from orchestrator.controller import terms
from orchestrator.controller.journal.base import JobRecord
from orchestrator.domain.clock import NANOSECONDS_PER_SECOND
from orchestrator.domain.money import Nanodollars, cumulative_cost, for_people, parse_dollars
from orchestrator.lifecycle import BudgetReached, Event, ScaleRequested, StoryEntry


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a reached limit means. `entry`: a line of the job's story that no event of the lifecycle tells."""

    event: Event | None
    entry: StoryEntry | None = None


def limit(record: JobRecord) -> Nanodollars | None:
    """What the job may cost in all; None without a budget."""
    if record.state.budget_nanodollars is not None:
        return Nanodollars(record.state.budget_nanodollars)
    budget = record.document["spec"].get("budget")
    return None if budget is None else parse_dollars(budget["limitUSD"])


def look(record: JobRecord, owed: Nanodollars | None, now_ns: int) -> Verdict | None:
    """What to do about a job that holds machines and owes so much; None: it may go on. A cost that is unknown has no limit:
    such a job is not accepted, see `refusal`."""
    allowed, spent = limit(record), owed
    if allowed is None or spent is None or spent < allowed or record.state.stopping is not None:
        return None
    budget = record.document["spec"].get("budget") or {}  # none of its own: a resume set the limit
    action = str(budget.get("onExceeded", "Suspend"))
    told = f"It has cost {for_people(spent)} of {for_people(allowed)}."
    if action != "ShrinkToMin":
        return Verdict(BudgetReached(now_ns, told, fail=action == "Fail"))
    fewest = terms.sizes(record.document)[0]
    if record.state.workers <= fewest:
        return None
    phase = record.state.phase
    message = f"{told} It goes on with the fewest workers that it may have, {fewest}."
    return Verdict(
        ScaleRequested(now_ns, fewest), StoryEntry(now_ns, "BudgetReached", phase, phase, "BudgetReached", message)
    )


def refusal(document: Mapping[str, Any], prices: PriceBook) -> str | None:
    """Why a job with this document cannot be accepted: nobody could hold it to its budget."""
    budget = document["spec"].get("budget")
    if budget is None:
        return None
    offering, least = prices.local_offering(), least_bill(document, prices)
    if least is None:
        return f"spec.budget cannot be kept: the price of a worker is unknown ({offering.price_source})"
    allowed = parse_dollars(budget["limitUSD"])
    if allowed <= least:
        return f"spec.budget.limitUSD is {for_people(allowed)}; its workers are billed {for_people(least)} however short they run"
    return None


def least_bill(document: Mapping[str, Any], prices: PriceBook) -> Nanodollars | None:
    """What the fewest workers of the job are billed as soon as they are there; None: unknown."""
    price, billing = prices.local_offering().price_nanodollars_per_hour, prices.billing
    if price is None:
        return None
    seconds = max(billing.minimum_seconds, billing.granularity_seconds)
    return Nanodollars(terms.sizes(document)[0] * cumulative_cost(price, seconds * NANOSECONDS_PER_SECOND))


def cannot_resume(record: JobRecord, raised: int | None, owed: Nanodollars | None, prices: PriceBook) -> str | None:
    """Why a resume would be stopped at once; `raised`: the limit that comes with it."""
    allowed = limit(record) if raised is None else Nanodollars(raised)
    least = least_bill(record.document, prices)
    if allowed is None or owed is None or least is None or owed + least < allowed:
        return None
    return (
        f"it has cost {for_people(owed)} of {for_people(allowed)}, and starting costs {for_people(least)}; "
        f"`orchestrate resume {record.name} --budget DOLLARS` raises what it may cost in all"
    )


def too_dear(document: Any, prices: PriceBook) -> str | None:
    """Why the job waits for cheaper machines; None: it need not."""
    highest = document["spec"].get("capacity", {}).get("maxPricePerHour")
    if highest is None:
        return None
    offering = prices.local_offering()
    price, allowed = offering.price_nanodollars_per_hour, parse_dollars(highest)
    if price is None:
        return f"capacity.maxPricePerHour is {for_people(allowed)}, and the price of a worker is unknown"
    if price <= allowed:
        return None
    return f"a worker costs {for_people(Nanodollars(price))} an hour, more than capacity.maxPricePerHour {for_people(allowed)}"
