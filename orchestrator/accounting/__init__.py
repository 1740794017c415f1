"""What machines cost and what for: price book, ledger, receipt. Pure; amounts are integer nano-dollars."""

from orchestrator.accounting.ledger import (
    Category,
    CategoryBooked,
    CheckpointStalled,
    Entry,
    Ledger,
    MachineHeld,
    MachineReleased,
    MachineTurned,
    Role,
    Segment,
    Statement,
    WorkSettled,
    entry_from_document,
    entry_to_document,
)
from orchestrator.accounting.prices import Billing, PriceBook, parse_price_file
from orchestrator.accounting.receipt import Receipt, write_receipt

__all__ = [
    "Billing",
    "Category",
    "CategoryBooked",
    "CheckpointStalled",
    "Entry",
    "Ledger",
    "MachineHeld",
    "MachineReleased",
    "MachineTurned",
    "PriceBook",
    "Receipt",
    "Role",
    "Segment",
    "Statement",
    "WorkSettled",
    "entry_from_document",
    "entry_to_document",
    "parse_price_file",
    "write_receipt",
]
