"""`spec.budget` and `capacity.maxPricePerHour` through the controller, with a fake engine."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest

from orchestrator.accounting import Billing, Category, PriceBook
from orchestrator.controller import budgets
from orchestrator.domain.errors import Conflict, UsageError
from orchestrator.domain.money import Nanodollars, parse_dollars
from orchestrator.lifecycle import Phase
from orchestrator.platforms.prices import load_prices
from tests.controller.world import GATES, World, document

PER_SECOND = Decimal("3.06") / 3600
"""Dollars of one worker, as the example prices have it."""


def budget(seconds: float, on_exceeded: str, workers: int = 2) -> dict[str, str]:
    """What so many workers cost in so many seconds. The example prices bill no minimum here, see `free_of_minimum`."""
    limit = (PER_SECOND * workers * Decimal(str(seconds))).quantize(Decimal("0.000000001"))
    return {"limitUSD": str(limit), "onExceeded": on_exceeded}


@pytest.fixture(autouse=True)
def free_of_minimum(world: World) -> None:
    """Machines are billed by the second, from the first one on, so that a second's budget can be tested."""
    world.controller.prices = replace(world.controller.prices, billing=Billing(1, 0))


def test_a_job_that_has_cost_its_budget_saves_and_is_suspended(world: World) -> None:
    """At the limit the gang saves its newest step and stops: a durable checkpoint, no work lost, and no more than a look and
    the stop itself beyond the limit."""
    world.submit("thrifty", steps=1000, allowed=7, budget=budget(1.5, "Suspend"))
    record = world.until_phase("thrifty", Phase.SUSPENDED)
    assert record.state.reason == "BudgetSuspended"
    assert "It has cost $" in record.state.message
    assert record.state.checkpoint_step == record.state.step >= 7
    assert f"Resume continues from step {record.state.step}." in record.state.message
    statement = world.controller.statement(record.uid)
    limit, late = (parse_dollars(budget(seconds, "Suspend")["limitUSD"]) for seconds in (1.0, 5.0))
    assert statement.total is not None
    assert limit <= statement.total <= late  # one look and the stop, which takes milliseconds here
    assert not statement.by_category().get(Category.LOST_WORK)
    assert "BudgetReached" in world.events("thrifty")


def test_resume_wants_a_larger_budget(world: World) -> None:
    """A suspended job is not resumed to be stopped at once; with a larger limit it goes on from its checkpoint to the end."""
    world.submit("poor", steps=20, allowed=7, budget=budget(1.5, "Suspend"))
    saved = world.until_phase("poor", Phase.SUSPENDED).state.checkpoint_step
    for too_small in (None, parse_dollars("0.000001")):
        with pytest.raises(Conflict, match=r"it has cost \$.* --budget DOLLARS"):
            world.controller.resume("default", "poor", too_small)
    assert world.job("poor").state.phase is Phase.SUSPENDED
    GATES["poor"].open(20)
    world.controller.resume("default", "poor", parse_dollars("5.00"))
    record = world.until_phase("poor", Phase.SUCCEEDED)
    assert record.state.budget_nanodollars == 5_000_000_000
    assert saved is not None
    assert record.state.restored_step == saved


def test_a_raised_budget_outlives_the_controller(world: World) -> None:
    """What a resume allowed is in the journal: a controller that comes back holds the job to it."""
    world.submit("kept", steps=1000, allowed=3, budget=budget(1.5, "Suspend"))
    world.until_phase("kept", Phase.SUSPENDED)
    world.controller.resume("default", "kept", parse_dollars("7.50"))
    world.restart()
    assert budgets.limit(world.job("kept")) == 7_500_000_000
    world.controller.request("default", "kept", "cancel")
    world.until_phase("kept", Phase.CANCELLED)


def test_fail_saves_first_and_ends_for_good(world: World) -> None:
    """With `Fail` the job ends as Failed, after a checkpoint, and cannot be resumed."""
    world.submit("strict", steps=1000, allowed=7, budget=budget(1.5, "Fail"))
    record = world.until_phase("strict", Phase.FAILED)
    assert record.state.reason == "BudgetExceeded"
    assert record.state.checkpoint_step == record.state.step >= 7
    with pytest.raises(Conflict, match="has ended"):
        world.controller.resume("default", "strict")


def test_a_job_within_its_budget_is_left_alone(world: World) -> None:
    """A limit that is not reached changes nothing."""
    world.submit("cheap", steps=8, allowed=8, budget={"limitUSD": "100", "onExceeded": "Fail"})
    record = world.until_phase("cheap", Phase.SUCCEEDED)
    assert "BudgetReached" not in world.events("cheap")
    assert record.state.reason == "Completed"


def test_a_budget_without_a_price_is_refused(world: World) -> None:
    """Where nobody knows what a worker costs, a job with a budget is not accepted, and nothing is kept of it."""
    book = load_prices(None)
    unknown = replace(book, local=None)
    assert isinstance(unknown, PriceBook)
    world.controller.prices = unknown
    with pytest.raises(UsageError, match=r"spec\.budget cannot be kept: the price of a worker is unknown"):
        world.submit("priceless", budget={"limitUSD": "10", "onExceeded": "Suspend"})
    assert world.controller.jobs() == []


def test_what_is_billed_at_least_counts_from_the_start(world: World) -> None:
    """Two workers that are billed for a minute each cost $0.102 however short they run: a smaller budget is refused at the
    submit, and a resume that starting alone would use up is refused as well."""
    world.controller.prices = replace(world.controller.prices, billing=Billing(1, 60))
    with pytest.raises(
        UsageError, match=r"limitUSD is \$0\.1019; its workers are billed \$0\.1020 however short they run"
    ):
        world.submit("tiny", budget={"limitUSD": "0.1019", "onExceeded": "Suspend"})
    world.submit("small", steps=1000, allowed=3, budget={"limitUSD": "0.1021", "onExceeded": "Suspend"})
    world.until("small", lambda found: found.state.step == 3)
    world.controller.request("default", "small", "suspend")
    world.until_phase("small", Phase.SUSPENDED)
    with pytest.raises(Conflict, match=r"it has cost \$0\.1020 of \$0\.1021, and starting costs \$0\.1020"):
        world.controller.resume("default", "small")


def test_a_job_waits_while_machines_cost_more_than_it_allows(world: World) -> None:
    """`maxPricePerHour` below the price keeps the job queued with both numbers; at the price it starts."""
    world.submit("patient", capacity={"maxPricePerHour": "3.05"})
    record = world.until_phase("patient", Phase.QUEUED)
    assert record.state.message == "a worker costs $3.06 an hour, more than capacity.maxPricePerHour $3.05"
    world.controller.request("default", "patient", "cancel")
    world.submit("ready", steps=1, allowed=1, capacity={"maxPricePerHour": "3.06"})
    world.until_phase("ready", Phase.SUCCEEDED)


def test_shrink_to_min_asks_for_the_fewest_workers_once(world: World) -> None:
    """An elastic job above its limit is scaled to its smallest size; there it goes on, and is not asked again."""
    record = world.submit("elastic", workers={"min": 1, "max": 2}, budget=budget(0.6, "ShrinkToMin"), allowed=3)
    shrunk = world.until("elastic", lambda found: found.state.workers == 1)
    assert world.events("elastic").count("BudgetReached") == 1
    statement = world.controller.statement(record.uid)
    assert budgets.look(shrunk, statement.total, statement.until_ns) is None
    world.controller.request("default", "elastic", "cancel")
    world.until_phase("elastic", Phase.CANCELLED)


def test_a_limit_is_exact_to_the_nano_dollar(world: World) -> None:
    """One nano-dollar below the limit the job goes on; at the limit it stops."""
    record = world.submit("exact", steps=1000, allowed=1)
    record = world.until("exact", lambda found: found.state.phase is Phase.RUNNING)
    statement = world.controller.statement(record.uid)
    assert statement.total is not None
    for over, stops in ((1, False), (0, True), (-1, True)):
        limited = replace(record, state=replace(record.state, budget_nanodollars=statement.total + over))
        limited = replace(limited, document=document("exact", budget={"limitUSD": "1", "onExceeded": "Fail"}))
        assert (budgets.look(limited, statement.total, statement.until_ns) is not None) is stops
    world.controller.request("default", "exact", "cancel")
    world.until_phase("exact", Phase.CANCELLED)


def test_status_tells_the_budget(world: World) -> None:
    """The limit in force stands in the status, as a decimal string; a job without one has no such field."""
    world.submit("limited", suspend=True, budget={"limitUSD": "12.50", "onExceeded": "Suspend"})
    world.submit("free", suspend=True)
    assert world.controller.view(world.job("limited"))["status"]["budgetUSD"] == "12.50"
    assert "budgetUSD" not in world.controller.view(world.job("free"))["status"]


def test_a_resume_may_limit_a_job_that_had_no_budget(world: World) -> None:
    """The limit of a resume holds also where the job file names none: the job saves and is suspended; others go on."""
    world.submit("late-limit", steps=1000, allowed=3)
    world.until("late-limit", lambda found: found.state.step == 3)
    world.controller.request("default", "late-limit", "suspend")
    spent = world.controller.statement(world.until_phase("late-limit", Phase.SUSPENDED).uid).total
    assert spent is not None
    GATES["late-limit"].open(3)
    world.controller.resume("default", "late-limit", Nanodollars(spent + 4_000_000))
    record = world.until_phase("late-limit", Phase.SUSPENDED)
    assert record.state.reason == "BudgetSuspended"
    world.submit("other", steps=1, allowed=1)
    world.until_phase("other", Phase.SUCCEEDED)
