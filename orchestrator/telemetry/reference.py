"""The reference page of the metrics, from the catalogue: `python -m orchestrator.telemetry.reference > docs/metrics.md`."""

from __future__ import annotations

import sys

from orchestrator.telemetry.catalogue import CATALOGUE, Metric

_HEAD = """\
# Metrics

`GET /metrics` on the controller's port, in Prometheus text format; no token is needed. Generated from
`orchestrator/telemetry/catalogue.py` by `python -m orchestrator.telemetry.reference > docs/metrics.md`.

- Everything comes from the committed ledger and journal. A counter never falls while the journal lives, also when the
  controller is killed and started again: money goes to a category only when that can no longer change. Until then it is
  in `orchestrate_job_at_risk_dollars` or `orchestrate_job_ongoing_dollars`, and always
  cost = sum of the categories + at risk + ongoing.
- `orchestrate_job_*` series end 15 minutes after their job. The rollups (`orchestrate_cost_dollars_total` and its
  neighbours) contain all jobs ever, stay, and are there at zero from the first job of a namespace and team: take `rate`
  and `increase` of those, and the last value of a job's.
- An unknown price is absent, not zero; `orchestrate_job_unpriced_machines` and
  `orchestrate_unpriced_machine_seconds_total` tell what is missing.
- The label of a job is `training_job`: `job` belongs to Prometheus. `capacity_type` is `spot` or `on-demand`. Categories
  are `useful`, `lost_work`, `checkpoint_stall`, `provisioning`, `restart` and `shutdown`.
- The cost of machines that are held runs at most five seconds behind.

What a job saved by spot: `orchestrate_job_list_cost_dollars_total - ignoring(capacity_type) sum without(capacity_type)
(orchestrate_job_cost_dollars_total)`. Goodput in money over a day, by team:
`sum by (team) (increase(orchestrate_cost_category_dollars_total{category="useful"}[1d])) / sum by (team)
(increase(orchestrate_cost_dollars_total[1d]))`.

| Metric | Type | Unit | Labels | Meaning | Caution |
|---|---|---|---|---|---|
"""


def page() -> str:
    return _HEAD + "".join(map(_row, CATALOGUE))


def _row(metric: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    return f"| `{metric.name}` | {metric.kind} | {metric.unit} | {labels} | {metric.help} | {metric.caution} |\n"


if __name__ == "__main__":
    sys.stdout.write(page())
