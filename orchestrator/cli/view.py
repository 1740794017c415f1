"""A job's resource as words for people: what `list`, `status`, `describe`, progress and receipt have in common.

The status of a young job lacks most fields; whatever is absent is shown as `-`, and money that nobody knows as `unknown`.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

ENDED = ("Succeeded", "Failed", "Cancelled")
RESTING = (*ENDED, "Suspended")
"""Phases in which nothing more happens by itself."""
NOTHING = "-"
SPLITS = ("train", "validation", "test")


class JobView:
    """Reads one resource."""

    def __init__(self, resource: Mapping[str, Any]) -> None:
        self.resource = resource
        self.metadata: Mapping[str, Any] = resource.get("metadata") or {}
        self.spec: Mapping[str, Any] = resource.get("spec") or {}
        self.status: Mapping[str, Any] = resource.get("status") or {}
        self.progress: Mapping[str, Any] = self.status.get("progress") or {}
        self.cost: Mapping[str, Any] = self.status.get("cost") or {}
        self.result: Mapping[str, Any] = self.status.get("result") or {}

    @property
    def name(self) -> str:
        return str(self.metadata.get("name", ""))

    @property
    def namespace(self) -> str:
        return str(self.metadata.get("namespace", "default"))

    @property
    def full_name(self) -> str:
        return f"{self.namespace}/{self.name}"

    @property
    def uid(self) -> str:
        return str(self.metadata.get("uid", ""))

    @property
    def version(self) -> int:
        """Where to wait from for the next change."""
        text = str(self.metadata.get("resourceVersion", "0"))
        return int(text) if text.isdigit() else 0

    @property
    def phase(self) -> str:
        return str(self.status.get("phase", "Pending"))

    @property
    def ended(self) -> bool:
        return self.phase in ENDED

    @property
    def reason(self) -> str:
        return str(self.status.get("reason") or "")

    @property
    def message(self) -> str:
        return str(self.status.get("message") or "")

    @property
    def step(self) -> int | None:
        return self.progress.get("step")

    @property
    def total_steps(self) -> int | None:
        return self.progress.get("totalSteps")

    @property
    def percent(self) -> float | None:
        percent = self.progress.get("percent")
        if percent is not None:
            return float(percent)
        return 100.0 * self.step / self.total_steps if self.step is not None and self.total_steps else None

    @property
    def steps(self) -> str:
        if self.step is None or (not self.step and not self.total_steps):
            return NOTHING
        return f"{self.step:,}/{self.total_steps:,}" if self.total_steps else f"{self.step:,}"

    @property
    def checkpoint(self) -> Mapping[str, Any]:
        """The newest checkpoint; empty when there is none."""
        last = (self.status.get("checkpoint") or {}).get("last")
        return last if isinstance(last, Mapping) else {}

    @property
    def restarts(self) -> int:
        """How often the job had to begin again after a loss or an error; changes of size are not among them."""
        restarts = self.status.get("restarts") or {}
        return sum(int(number or 0) for cause, number in restarts.items() if cause != "resize")

    @property
    def resizes(self) -> int:
        return int((self.status.get("restarts") or {}).get("resize") or 0)

    @property
    def elastic(self) -> bool:
        """Whether the number of workers may change."""
        workers = self.spec.get("workers") or {}
        return int(workers.get("min") or 0) < int(workers.get("max") or 0)

    @property
    def ready(self) -> int | None:
        """Workers that train, or are ready to."""
        return (self.status.get("workers") or {}).get("ready")

    @property
    def disruptions(self) -> list[Mapping[str, Any]]:
        """The newest ones, oldest first."""
        return list(self.status.get("disruptions") or [])

    @property
    def workers(self) -> str:
        workers = self.status.get("workers") or {}
        desired = workers.get("desired", (self.spec.get("workers") or {}).get("max"))
        if desired is None:
            return NOTHING
        ready = workers.get("ready")
        return f"{desired}" if ready is None or self.phase in RESTING else f"{ready}/{desired}"

    @property
    def loss(self) -> str:
        return number(self.progress.get("loss"))

    @property
    def eta(self) -> str:
        seconds = self.progress.get("etaSeconds")
        return NOTHING if seconds is None or self.phase in RESTING else duration(seconds)

    @property
    def total_cost(self) -> str:
        if not self.cost:
            return NOTHING
        limit = self.status.get("budgetUSD")
        return dollars(self.cost.get("totalUSD")) + ("" if limit is None else f" of {dollars(limit)}")

    def seconds(self, now_ns: int) -> float | None:
        """From the start of training (else from the submission) to the end, or until now."""
        start = instant(self.metadata.get("creationTimestamp")) or instant(self.status.get("startTime"))
        if start is None:
            return None
        end = instant(self.status.get("completionTime"))
        return max(0.0, (end if end is not None else now_ns / 1e9) - start)

    def age(self, now_ns: int) -> str:
        created = instant(self.metadata.get("creationTimestamp"))
        return NOTHING if created is None else duration(max(0.0, now_ns / 1e9 - created))

    def metrics(self) -> dict[str, dict[str, Any]]:
        """Metrics by split; those that name no split stand under an empty name."""
        found = self.progress.get("metrics") or self.result.get("metrics") or {}
        by_split: dict[str, dict[str, Any]] = {}
        for name, value in found.items():
            split, underscore, metric = str(name).partition("_")
            if isinstance(value, Mapping):
                by_split.setdefault(str(name), {}).update(value)
            elif underscore and split in SPLITS:
                by_split.setdefault(split, {})[metric] = value
            else:
                by_split.setdefault("", {})[str(name)] = value
        return by_split


def number(value: Any) -> str:
    """A measured value with four significant decimals."""
    if value is None or isinstance(value, bool):
        return NOTHING
    if isinstance(value, int | float):
        return (
            f"{value:,}"
            if isinstance(value, int)
            else f"{value:.4f}"
            if 1e-3 <= abs(value) < 1e5 or not value
            else f"{value:.3g}"
        )
    return str(value)


def metrics_line(metrics: Mapping[str, Any]) -> str:
    """`accuracy 0.8312, loss 0.3921`."""
    plain = {name: value for name, value in metrics.items() if not isinstance(value, Mapping | list)}
    return ", ".join(f"{name} {number(value)}" for name, value in plain.items()) or NOTHING


def dollars(text: str | None) -> str:
    """A decimal string of dollars for a screen: two decimals from one dollar up, four below; None is `unknown`."""
    if text is None:
        return "unknown"
    amount = Decimal(text)
    if not amount:
        return "$0.00"
    places = 2 if abs(amount) >= 1 else 4 if abs(amount) >= Decimal("0.0001") else 6
    sign = "-" if amount < 0 else ""
    return f"{sign}${abs(amount):,.{places}f}"


def duration(seconds: float) -> str:
    from orchestrator.domain.quantities import format_duration

    return format_duration(round(seconds * 1e9))


def instant(text: Any) -> float | None:
    """Seconds since the epoch of an RFC 3339 time in UTC; None when there is none."""
    if not isinstance(text, str) or not text:
        return None
    from datetime import datetime

    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


def priced_as(cost: Mapping[str, Any]) -> str:
    """Where the prices come from, and whether anybody bills them. A source reads `machine: list, date`."""
    sources = [str(source) for source in cost.get("priceSources") or []]
    if not sources:
        return "No machine was held, so nothing was priced."
    if cost.get("billed"):
        return f"Priced by {'; '.join(sources)}."
    machines = ", ".join(dict.fromkeys(source.partition(": ")[0] for source in sources))
    return f"Priced as {machines} (example); nothing was billed."
