"""Every metric that orchestrate exports, as data: the renderer, the reference page and the tests read it from here.

All names begin with `orchestrate_`. The label of a job is `training_job`, since Prometheus owns `job`. Series of a job
end some minutes after the job; what must be summed over long times is in the rollups by namespace and team, which never
end. An amount whose price is not known has no sample: absent is not zero.
"""

from __future__ import annotations

from dataclasses import dataclass

PREFIX = "orchestrate_"

JOB = ("namespace", "training_job")
TEAM = ("namespace", "team")

_LAST_VALUE = "Read the last value of a job (`last_over_time`); for rates and sums over time use the rollup."
_SUM_JOBS = "Do not sum over time; over jobs you may."


@dataclass(frozen=True, slots=True)
class Metric:
    """One family."""

    name: str
    kind: str
    """`counter` (never falls while the journal lives) or `gauge`."""
    unit: str
    labels: tuple[str, ...]
    help: str
    caution: str
    """What must not be done with it; empty when nothing needs saying."""


def _counter(name: str, unit: str, labels: tuple[str, ...], text: str, caution: str = "") -> Metric:
    return Metric(f"{PREFIX}{name}", "counter", unit, labels, text, caution)


def _gauge(name: str, unit: str, labels: tuple[str, ...], text: str, caution: str = "") -> Metric:
    return Metric(f"{PREFIX}{name}", "gauge", unit, labels, text, caution)


BUILD_INFO = _gauge("build_info", "1", ("version",), "Always 1; the version of the controller.")
JOB_INFO = _gauge(
    "job_info",
    "1",
    (*JOB, "uid", "team", "cost_center", "queue", "model", "zero_stage", "instance_type"),
    "Always 1; join by namespace and training_job to add these labels to other series.",
    "Do not sum.",
)
JOB_PHASE = _gauge("job_phase", "1", (*JOB, "phase"), "Always 1; the one series of a job names its present phase.")
JOB_COST = _counter(
    "job_cost_dollars_total",
    "US dollars",
    (*JOB, "capacity_type"),
    "What the job's machines have cost until now; absent when a price is unknown.",
    _LAST_VALUE,
)
JOB_CATEGORY_COST = _counter(
    "job_cost_category_dollars_total",
    "US dollars",
    (*JOB, "category", "capacity_type"),
    "Settled part of the cost by what it was for. With job_at_risk_dollars and job_ongoing_dollars it adds up to the cost.",
    _LAST_VALUE,
)
JOB_LIST_COST = _counter(
    "job_list_cost_dollars_total",
    "US dollars",
    JOB,
    "The same machine time at the on-demand list price; less the cost it is what spot saved.",
    _LAST_VALUE,
)
JOB_GPU_SECONDS = _counter(
    "job_gpu_seconds_total", "seconds", (*JOB, "capacity_type"), "Seconds of GPUs that were paid for.", _LAST_VALUE
)
JOB_SPEND = _gauge(
    "job_spend_dollars_per_hour", "US dollars per hour", JOB, "What the machines held now cost an hour.", _SUM_JOBS
)
JOB_AT_RISK = _gauge(
    "job_at_risk_dollars", "US dollars", JOB, "Training that no durable checkpoint covers yet.", _SUM_JOBS
)
JOB_ONGOING = _gauge(
    "job_ongoing_dollars",
    "US dollars",
    JOB,
    "Provisioning, restart or shutdown that is going on; it goes to its category when it is over.",
    _SUM_JOBS,
)
JOB_UNPRICED = _gauge(
    "job_unpriced_machines",
    "machines",
    JOB,
    "Machines of the job whose price is unknown, held now or earlier.",
    _SUM_JOBS,
)
JOB_STEPS = _counter(
    "job_steps_total",
    "steps",
    (*JOB, "result"),
    "Optimizer steps: kept counts each step once, lost those that were done before and had to be redone.",
    _LAST_VALUE,
)
JOB_SAMPLES = _counter(
    "job_samples_total", "samples", JOB, "Training samples, each counted once however often redone.", _LAST_VALUE
)
JOB_PREEMPTIONS = _counter(
    "job_preemptions_total",
    "attempts",
    (*JOB, "reason"),
    "Attempts, and worlds inside them, that lost their machines or processes and were followed by another, by reason.",
    _LAST_VALUE,
)
JOB_RESTARTS = _counter(
    "job_restarts_total",
    "attempts",
    (*JOB, "reason"),
    "Attempts, and worlds inside them, that failed and were followed by another, by the reason of the failure.",
    f"{_LAST_VALUE} Contains job_preemptions_total: do not add the two.",
)
JOB_CHECKPOINTS = _counter(
    "job_checkpoints_total",
    "checkpoints",
    (*JOB, "result"),
    "Checkpoints: committed became durable, refused were found torn or damaged at a restore.",
    _LAST_VALUE,
)
JOB_LAST_CHECKPOINT = _gauge(
    "job_last_checkpoint_timestamp_seconds",
    "seconds since 1970",
    JOB,
    "When the newest checkpoint became durable.",
    "Do not sum; `time() - x` is the age.",
)
JOB_WORKERS = _gauge(
    "job_workers", "workers", (*JOB, "state"), "Workers that are desired, ready and draining.", _SUM_JOBS
)
JOBS = _gauge(
    "jobs", "jobs", ("namespace", "phase"), "Jobs in each phase; every phase has a series.", "Do not sum over time."
)
COST = _counter(
    "cost_dollars_total",
    "US dollars",
    (*TEAM, "capacity_type"),
    "Cost of all jobs ever; machines of unknown price are left out and counted in unpriced_machine_seconds_total.",
)
CATEGORY_COST = _counter(
    "cost_category_dollars_total",
    "US dollars",
    (*TEAM, "category", "capacity_type"),
    "Settled cost of all jobs ever, by what it was for.",
    "Lags behind cost_dollars_total by what is at risk or going on.",
)
LIST_COST = _counter(
    "list_cost_dollars_total",
    "US dollars",
    (*TEAM, "capacity_type"),
    "The machine time of all jobs ever at on-demand list prices.",
)
GPU_SECONDS = _counter(
    "gpu_seconds_total", "seconds", (*TEAM, "capacity_type"), "Seconds of GPUs that were paid for, over all jobs ever."
)
UNPRICED_SECONDS = _counter(
    "unpriced_machine_seconds_total",
    "seconds",
    TEAM,
    "Machine time that is missing from the cost, its price being unknown.",
)
LAST_COMMIT = _gauge(
    "ledger_last_commit_timestamp_seconds",
    "seconds since 1970",
    (),
    "When this controller last wrote to its journal; absent before the first time.",
    "Do not sum.",
)
COMMITS = _counter("journal_commits_total", "commits", (), "Commits of this controller since it started.")
JOURNAL_SIZE = _gauge("journal_size_bytes", "bytes", (), "Size of the journal.", "Do not sum over time.")
READY = _gauge("controller_ready", "1", (), "1 when the last commit succeeded and decisions are being made, else 0.")

CATALOGUE: tuple[Metric, ...] = (
    BUILD_INFO,
    READY,
    JOB_INFO,
    JOB_PHASE,
    JOB_COST,
    JOB_CATEGORY_COST,
    JOB_LIST_COST,
    JOB_GPU_SECONDS,
    JOB_SPEND,
    JOB_AT_RISK,
    JOB_ONGOING,
    JOB_UNPRICED,
    JOB_STEPS,
    JOB_SAMPLES,
    JOB_PREEMPTIONS,
    JOB_RESTARTS,
    JOB_CHECKPOINTS,
    JOB_LAST_CHECKPOINT,
    JOB_WORKERS,
    JOBS,
    COST,
    CATEGORY_COST,
    LIST_COST,
    GPU_SECONDS,
    UNPRICED_SECONDS,
    LAST_COMMIT,
    COMMITS,
    JOURNAL_SIZE,
)
