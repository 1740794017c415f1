"""What can be rented: an instance type, in a zone, as spot or on-demand, at a price."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class CapacityType(StrEnum):
    """How a machine is rented. The values are those of metrics, JSON and ledger segments."""

    SPOT = "spot"
    ON_DEMAND = "on-demand"


@dataclass(frozen=True, slots=True)
class Offering:
    """One kind of machine on offer.

    `price_nanodollars_per_hour` and `list_price_nanodollars_per_hour` (the on-demand price of the same machine) are None
    when nobody could tell; `price_source` then says why, else where the price comes from and of which date.
    """

    instance_type: str
    zone: str
    capacity_type: CapacityType
    price_nanodollars_per_hour: int | None
    list_price_nanodollars_per_hour: int | None
    price_source: str
    billed: bool = True
    """False for an example price that nobody will bill (a laptop priced as a cloud machine)."""
