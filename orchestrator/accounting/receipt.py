"""The receipt at the end of a job: what it cost, what of that was useful, what was lost, and what came out of it."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.accounting.ledger import Category, Statement
from orchestrator.domain.money import Nanodollars

_WASTED = tuple(c for c in Category if c not in (Category.USEFUL, Category.AT_RISK))


@dataclass(frozen=True, slots=True)
class Receipt:
    """Amounts in nano-dollars; None means unknown."""

    total: Nanodollars | None
    useful: Nanodollars | None
    at_risk: Nanodollars | None
    wasted: dict[str, Nanodollars | None]
    """By category; a category without any time is absent."""
    saved: Nanodollars | None
    """On-demand list price of the same time, less the total."""
    per_hour: Nanodollars | None
    per_thousand_samples: Nanodollars | None
    """Total over the samples that were trained and kept; None before the first, or when a price is unknown."""
    billed: bool
    price_sources: tuple[str, ...]


def write_receipt(statement: Statement, samples_kept: int) -> Receipt:
    """The receipt of a statement. `samples_kept`: training samples whose work was not lost."""
    total, listed = statement.total, statement.list_total
    by_category = statement.by_category()
    zero = Nanodollars(0)
    return Receipt(
        total=total,
        useful=by_category.get(Category.USEFUL, zero),
        at_risk=by_category.get(Category.AT_RISK, zero),
        wasted={category.value: by_category[category] for category in _WASTED if category in by_category},
        saved=None if total is None or listed is None else Nanodollars(listed - total),
        per_hour=statement.per_hour_nanodollars,
        per_thousand_samples=None if total is None or samples_kept <= 0 else Nanodollars(total * 1_000 // samples_kept),
        billed=statement.billed,
        price_sources=statement.price_sources,
    )
