"""Show what a job has cost, and what for. The parts add up to the total, to the last nano-dollar.

At risk is what was spent on steps that no durable checkpoint covers yet; it becomes useful or lost work.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from orchestrator.cli.arguments import Parser, add_connection, add_job, add_output
from orchestrator.cli.output import emit, table
from orchestrator.cli.view import NOTHING, dollars, duration, priced_as

if TYPE_CHECKING:
    from orchestrator.cli.context import Context


def add_arguments(parser: Parser) -> None:
    add_job(parser)
    parser.add_argument(
        "--segments", action="store_true", help="every segment of every machine's time, instead of sums"
    )
    add_output(parser, ("table", "json", "yaml", "jsonl", "name"))
    add_connection(parser)


def run(args: argparse.Namespace, context: Context) -> int:
    namespace, name = context.job(args.job)
    cost = context.client().cost(namespace, name)
    segments: list[dict[str, Any]] = cost.get("segments") or []
    sums = {key: value for key, value in cost.items() if key != "segments"}
    emit(
        context,
        args.output,
        segments if args.segments else [sums],
        whole=cost if args.segments else sums,
        as_table=lambda: segments_table(segments) if args.segments else cost_text(cost),
        names=lambda item: str(item.get("machine", name)),
    )
    return 0


def cost_text(cost: Mapping[str, Any]) -> str:
    """Time and dollars by category, the total, and where the prices come from."""
    seconds: dict[str, float] = defaultdict(float)
    for segment in cost.get("segments") or []:
        seconds[segment["category"]] += (segment["end_ns"] - segment["start_ns"]) / 1e9
    amounts: dict[str, str | None] = {"useful": cost.get("usefulUSD"), "at_risk": cost.get("atRiskUSD")}
    amounts |= dict(cost.get("wastedUSD") or {})
    total = cost.get("totalUSD")
    rows = [
        (
            category,
            duration(seconds[category]) if category in seconds else NOTHING,
            exact(amount),
            share(amount, total),
        )
        for category, amount in amounts.items()
        if category in seconds or amount is None or Decimal(amount)
    ]
    rows.append(("total", duration(sum(seconds.values())), exact(total), share(total, total)))
    lines = [table(("CATEGORY", "MACHINE TIME", "COST", "SHARE"), rows, right=("MACHINE TIME", "COST", "SHARE"))]
    if (per_thousand := cost.get("perThousandSamplesUSD")) is not None:
        lines.append(f"Per 1,000 samples: {dollars(per_thousand)}\n")
    if (saved := cost.get("savedUSD")) is not None and Decimal(saved):
        lines.append(f"Saved against on-demand prices: {dollars(saved)}\n")
    if (per_hour := cost.get("perHourUSD")) is not None and Decimal(per_hour):
        lines.append(f"Now: {dollars(per_hour)} an hour\n")
    lines.append(priced_as(cost) + "\n")
    return "".join(lines)


def exact(text: str | None) -> str:
    """All nine decimals, so that a reader can add the column up."""
    return "unknown" if text is None else f"${Decimal(text):,.9f}"


def share(amount: str | None, total: str | None) -> str:
    if amount is None or total is None or not Decimal(total):
        return NOTHING
    return f"{float(Decimal(amount) / Decimal(total)) * 100:.1f} %"


def segments_table(segments: list[dict[str, Any]]) -> str:
    from orchestrator.domain.clock import to_rfc3339

    rows = []
    for segment in segments:
        nanodollars = segment.get("cost_nanodollars")
        rows.append(
            (
                str(segment["machine"]),
                str(segment["instanceType"]),
                str(segment["capacityType"]),
                str(segment["category"]),
                to_rfc3339(segment["start_ns"])[:23],
                duration((segment["end_ns"] - segment["start_ns"]) / 1e9),
                "unknown" if nanodollars is None else f"${Decimal(nanodollars) / 10**9:,.9f}",
            )
        )
    headings = ("MACHINE", "TYPE", "CAPACITY", "CATEGORY", "START (UTC)", "TIME", "COST")
    return table(headings, rows, right=("TIME", "COST"))
