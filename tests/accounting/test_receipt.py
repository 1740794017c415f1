"""The receipt: what is known, and what stays unknown."""

from __future__ import annotations

from orchestrator.accounting import CategoryBooked, Ledger, MachineHeld, MachineReleased, WorkSettled, write_receipt
from orchestrator.domain.money import NANOSECONDS_PER_HOUR


def ledger_of(price: int | None, listed: int | None, billed: bool = True) -> Ledger:
    machine = MachineHeld(0, "m", "t", "z", "spot", 1, price, listed, "the list", billed, 0, 0)
    entries = [machine, CategoryBooked(0, "provisioning"), CategoryBooked(10, "at_risk")]
    return Ledger([*entries, WorkSettled(40, useful=True)])


def test_a_receipt_of_known_prices() -> None:
    """Total, useful, at risk, wasted, saved and the price of a thousand samples follow from the statement."""
    receipt = write_receipt(ledger_of(NANOSECONDS_PER_HOUR, 3 * NANOSECONDS_PER_HOUR).statement(50), samples_kept=25)
    assert (receipt.total, receipt.useful, receipt.at_risk) == (50, 30, 10)
    assert receipt.wasted == {"provisioning": 10}
    assert (receipt.saved, receipt.per_hour) == (100, NANOSECONDS_PER_HOUR)
    assert receipt.per_thousand_samples == 2_000
    assert (receipt.billed, receipt.price_sources) == (True, ("the list",))


def test_an_unknown_price_makes_no_amount_zero() -> None:
    """What depends on an unknown price is None; a category without any time costs nothing for certain."""
    receipt = write_receipt(ledger_of(None, None).statement(50), samples_kept=25)
    assert (receipt.total, receipt.useful, receipt.at_risk) == (None, None, None)
    assert (receipt.saved, receipt.per_hour, receipt.per_thousand_samples) == (None, None, None)
    assert receipt.wasted == {"provisioning": None}


def test_savings_need_a_list_price() -> None:
    """With a price but no list price the total is known and the saving is not."""
    receipt = write_receipt(ledger_of(NANOSECONDS_PER_HOUR, None).statement(50), samples_kept=0)
    assert (receipt.total, receipt.saved, receipt.per_thousand_samples) == (50, None, None)


def test_a_released_machine_spends_nothing_now() -> None:
    """After the release the total stands and nothing is being spent."""
    ledger = ledger_of(NANOSECONDS_PER_HOUR, NANOSECONDS_PER_HOUR, billed=False)
    ledger.append(MachineReleased(50, "m"))
    receipt = write_receipt(ledger.statement(10_000), samples_kept=1)
    assert (receipt.total, receipt.saved, receipt.per_hour, receipt.billed) == (50, 0, 0, False)


def test_a_job_that_never_held_a_machine_cost_nothing() -> None:
    """An empty ledger gives zeros, not unknowns."""
    receipt = write_receipt(Ledger().statement(5), samples_kept=0)
    assert (receipt.total, receipt.useful, receipt.wasted, receipt.per_hour) == (0, 0, {}, 0)
