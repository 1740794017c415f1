"""The receipt at the end of a job: what came out of it and what every dollar did, in at most 25 lines of 80 columns.

Pure: a resource and its cost in, lines out. The parts of the cost add up to the total; one that is unknown makes the
total unknown, and is shown as such.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from orchestrator.cli.view import JobView, dollars, duration, metrics_line, priced_as

if TYPE_CHECKING:
    from orchestrator.cli.context import Context
    from orchestrator.controller.client import Client

WIDTH = 80
LABEL = 13
BAR = 24
MOST_PARTS = 7
SPLITS = ("test", "validation", "", "train")
"""The two that come first here and were measured are shown."""
NAMES = {
    "useful": "useful work",
    "at_risk": "not yet saved",
    "lost_work": "lost work",
    "provisioning": "starting up",
    "restart": "restarts",
    "resize": "resizing",
    "checkpoint_stall": "checkpoints",
    "input_stall": "waiting for data",
    "idle": "idle",
    "shutdown": "shutdown, minimum",
}
"""What people read for each category, in the order of the receipt."""


def print_receipt(context: Context, client: Client, job: JobView) -> None:
    """Print the receipt of a job that has ended or is suspended."""
    cost = client.cost(job.namespace, job.name)
    for line in receipt_lines(job, cost, context.clock.now_ns(), drawn=context.draws(context.out)):
        context.print(line)


def receipt_lines(job: JobView, cost: Mapping[str, Any], now_ns: int, *, drawn: bool = True) -> list[str]:
    """The lines of the receipt; plain ASCII unless `drawn`. `cost` is the answer of the cost route."""
    rule = ("─" if drawn else "-") * WIDTH
    seconds = job.seconds(now_ns)
    right = f"{job.phase} in {duration(seconds)}" if seconds is not None else job.phase
    lines = [rule, _ends(f" {job.full_name}", f"{right} ")]
    if job.phase != "Succeeded" or job.reason not in ("", "Completed"):
        lines += _wrapped(job.message or job.reason, 2)
    lines += [rule, *_work(job), rule, *_money(job, cost, drawn=drawn)]
    places = _places(job)
    if places:
        lines += [rule, *places]
    return [*lines, rule]


def _row(label: str, value: str) -> str:
    return f" {label:<{LABEL}}{value}".rstrip()


def _ends(left: str, right: str) -> str:
    return left + " " * max(2, WIDTH - len(left) - len(right)) + right.rstrip()


def _wrapped(text: str, most: int) -> list[str]:
    from textwrap import wrap

    lines = wrap(text, WIDTH - 2)
    if len(lines) > most:
        lines = [*lines[: most - 1], lines[most - 1][: WIDTH - 5] + " ..."]
    return [f" {line}" for line in lines]


def _work(job: JobView) -> list[str]:
    parts = []
    if job.step:
        of = f" of {job.total_steps:,}" if job.total_steps and job.total_steps != job.step else ""
        parts.append(f"{job.step:,}{of} steps")
    if samples := _samples(job):
        parts.append(f"{samples:,} samples")
    if (epoch := job.progress.get("epoch")) is not None:
        parts.append(f"{epoch:.4g} epoch{'s' if epoch != 1 else ''}")
    if (world_size := job.status.get("worldSize")) is not None:
        parts.append(f"{world_size} rank{'s' if world_size != 1 else ''}")
    lines = [_row("Training", ", ".join(parts))] if parts else []
    restarts: Mapping[str, Any] = job.status.get("restarts") or {}
    attempts = int(job.status.get("attempt") or 0)
    causes = [
        f"{count} after {what}"
        for key, what in (("preemption", "losses"), ("application", "errors"))
        if (count := restarts.get(key))
    ]
    told = f"{attempts}" + (f" (restarts: {', '.join(causes)})" if causes else "")
    if job.resizes:
        told += f", {job.resizes} resize{'s' if job.resizes != 1 else ''}"
    lines.append(_row("Attempts", told))
    splits = job.metrics()
    order = sorted(splits, key=lambda split: SPLITS.index(split) if split in SPLITS else len(SPLITS))
    lines += [_row(split.capitalize() or "Metrics", metrics_line(splits[split]))[:WIDTH] for split in order[:2]]
    return lines


def _samples(job: JobView) -> int | None:
    samples = job.progress.get("samples")
    return int(samples) if samples else None


def _money(job: JobView, cost: Mapping[str, Any], *, drawn: bool) -> list[str]:
    total = cost.get("totalUSD")
    per_thousand = cost.get("perThousandSamplesUSD")
    aside = f"{dollars(per_thousand)} per 1,000 samples" if per_thousand is not None else ""
    lines = [_row("Cost", f"{dollars(total):<18}{aside}")]
    parts: dict[str, str | None] = {"useful": cost.get("usefulUSD"), "at_risk": cost.get("atRiskUSD")}
    parts |= dict(cost.get("wastedUSD") or {})
    known = {name: parts[name] for name in (*NAMES, *sorted(set(parts) - set(NAMES))) if name in parts}
    spent = _counts(total)
    for name, amount in _largest({n: a for n, a in known.items() if _counts(a) or (n == "useful" and spent)}):
        share = float(Decimal(amount) / Decimal(total)) if amount is not None and total and Decimal(total) else None
        lines.append(_part(NAMES.get(name, name), amount, share, drawn=drawn))
    saved = cost.get("savedUSD")
    if saved is not None and Decimal(saved):
        lines.append(_row("Saved", f"{dollars(saved)} against the on-demand price of the same time"))
    lines += _wrapped(priced_as(cost), 2)
    return lines


def _counts(amount: str | None) -> bool:
    """Whether an amount is unknown or more than nothing."""
    return amount is None or bool(Decimal(amount))


def _largest(parts: Mapping[str, str | None]) -> list[tuple[str, str | None]]:
    """The parts in their order; when there are too many, the smallest are one part, so that the sum stays the total."""
    if len(parts) <= MOST_PARTS:
        return list(parts.items())
    by_size = sorted(parts, key=lambda name: Decimal(parts[name] or "Infinity"), reverse=True)
    kept = {"useful", *by_size[: MOST_PARTS - 2]}
    rest = [parts[name] for name in parts if name not in kept]
    together = None if None in rest else str(sum(Decimal(amount) for amount in rest if amount is not None))
    return [(name, amount) for name, amount in parts.items() if name in kept] + [("other causes", together)]


def _part(name: str, amount: str | None, share: float | None, *, drawn: bool) -> str:
    text = f"   {name:<17}{dollars(amount):>12}"
    if share is None:
        return text
    ink = "█" if drawn else "#"
    return f"{text}  {share * 100:5.1f} %  {ink * round(share * BAR)}".rstrip()


def _places(job: JobView) -> list[str]:
    lines = []
    if model := job.result.get("modelUri"):
        lines.append(_row("Model", str(model)))
    if uri := job.checkpoint.get("uri"):
        lines.append(_row("Checkpoint", f"{uri}"))
    return lines
