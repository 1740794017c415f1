"""A snapshot as Prometheus text (format 0.0.4). Pure.

Not prometheus_client: its collectors build an object a sample, which took sixteen times the CPU of this at a thousand
jobs. Amounts are written from integers, so that no digit is lost.
"""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.accounting import Category
from orchestrator.domain.offerings import CapacityType
from orchestrator.telemetry import catalogue as c
from orchestrator.telemetry.catalogue import CATALOGUE, Metric
from orchestrator.telemetry.samples import Amounts, JobSample, Snapshot

_GIGA = 1_000_000_000
_CAPACITY_TYPES = tuple(kind.value for kind in CapacityType)
_SETTLED = tuple(category.value for category in Category if category is not Category.AT_RISK)


class _Lines:
    """Lines of every family, in the order in which they were written."""

    def __init__(self) -> None:
        self._lines: dict[str, list[str]] = {metric.name: [] for metric in CATALOGUE}

    def put(self, metric: Metric, labels: str, value: int | str) -> None:
        name = metric.name
        self._lines[name].append(f"{name}{{{labels}}} {value}\n" if labels else f"{name} {value}\n")

    def text(self) -> str:
        parts: list[str] = []
        for metric in CATALOGUE:
            if lines := self._lines[metric.name]:
                parts.append(f"# HELP {metric.name} {metric.help}\n# TYPE {metric.name} {metric.kind}\n")
                parts.extend(lines)
        return "".join(parts)


def render(snapshot: Snapshot) -> str:
    """The text. A family without samples is left out."""
    lines = _Lines()
    lines.put(c.BUILD_INFO, _labels(version=snapshot.version), 1)
    lines.put(c.READY, "", int(snapshot.ready))
    for job in snapshot.jobs:
        _job(lines, job)
    for (namespace, phase), count in sorted(snapshot.phases.items()):
        lines.put(c.JOBS, _labels(namespace=namespace, phase=phase), count)
    for (namespace, team), amounts in sorted(snapshot.rollups.items()):
        _rollup(lines, _labels(namespace=namespace, team=team), amounts)
    if snapshot.last_commit_ns is not None:
        lines.put(c.LAST_COMMIT, "", _billionths(snapshot.last_commit_ns))
    lines.put(c.COMMITS, "", snapshot.commits)
    if snapshot.journal_bytes is not None:
        lines.put(c.JOURNAL_SIZE, "", snapshot.journal_bytes)
    return lines.text()


def _job(lines: _Lines, job: JobSample) -> None:
    mine = _labels(namespace=job.namespace, training_job=job.name)
    amounts = job.amounts
    info = _labels(
        uid=job.uid,
        team=job.team,
        cost_center=job.cost_center,
        queue=job.queue,
        model=job.model,
        zero_stage=job.zero_stage,
        instance_type=job.instance_type,
    )
    lines.put(c.JOB_INFO, f"{mine},{info}", 1)
    lines.put(c.JOB_PHASE, f'{mine},phase="{job.phase}"', 1)
    for capacity, cost in amounts.cost.items():
        if not amounts.unpriced_ns.get(capacity):
            lines.put(c.JOB_COST, f'{mine},capacity_type="{capacity}"', _billionths(cost))
    for (category, capacity), cost in amounts.settled.items():
        if not amounts.unpriced_ns.get(capacity):
            labels = f'{mine},category="{category}",capacity_type="{capacity}"'
            lines.put(c.JOB_CATEGORY_COST, labels, _billionths(cost))
    if not amounts.unlisted_ns and amounts.list_cost:
        lines.put(c.JOB_LIST_COST, mine, _billionths(sum(amounts.list_cost.values())))
    for capacity, gpu_ns in amounts.gpu_ns.items():
        lines.put(c.JOB_GPU_SECONDS, f'{mine},capacity_type="{capacity}"', _billionths(gpu_ns))
    if job.per_hour is not None:
        lines.put(c.JOB_SPEND, mine, _billionths(job.per_hour))
    if not amounts.unpriced_machines:
        lines.put(c.JOB_AT_RISK, mine, _billionths(amounts.at_risk))
        lines.put(c.JOB_ONGOING, mine, _billionths(amounts.ongoing))
    lines.put(c.JOB_UNPRICED, mine, amounts.unpriced_machines)
    lines.put(c.JOB_SAMPLES, mine, job.samples)
    _counts(lines, c.JOB_STEPS, mine, "result", job.steps)
    _counts(lines, c.JOB_PREEMPTIONS, mine, "reason", job.preemptions)
    _counts(lines, c.JOB_RESTARTS, mine, "reason", job.restarts)
    _counts(lines, c.JOB_CHECKPOINTS, mine, "result", job.checkpoints)
    if job.last_checkpoint_ns is not None:
        lines.put(c.JOB_LAST_CHECKPOINT, mine, _billionths(job.last_checkpoint_ns))
    _counts(lines, c.JOB_WORKERS, mine, "state", job.workers)


def _rollup(lines: _Lines, mine: str, amounts: Amounts) -> None:
    """Every series is there from the beginning, at zero: one that is born later loses its first value."""
    for capacity in _CAPACITY_TYPES:
        labels = f'{mine},capacity_type="{capacity}"'
        lines.put(c.COST, labels, _billionths(amounts.cost[capacity]))
        lines.put(c.LIST_COST, labels, _billionths(amounts.list_cost[capacity]))
        lines.put(c.GPU_SECONDS, labels, _billionths(amounts.gpu_ns[capacity]))
        for category in _SETTLED:
            labels = f'{mine},category="{category}",capacity_type="{capacity}"'
            lines.put(c.CATEGORY_COST, labels, _billionths(amounts.settled[category, capacity]))
    lines.put(c.UNPRICED_SECONDS, mine, _billionths(sum(amounts.unpriced_ns.values())))


def _counts(lines: _Lines, metric: Metric, mine: str, label: str, counts: Mapping[str, int]) -> None:
    for value, count in counts.items():
        lines.put(metric, f'{mine},{label}="{value}"', count)


def _labels(**labels: str) -> str:
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _billionths(value: int) -> str:
    """Nano-units as a decimal number of units, exact."""
    sign, magnitude = ("-", -value) if value < 0 else ("", value)
    whole, rest = divmod(magnitude, _GIGA)
    return f"{sign}{whole}.{rest:09d}".rstrip("0").removesuffix(".") if rest else f"{sign}{whole}"
