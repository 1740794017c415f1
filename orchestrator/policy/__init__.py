"""What to do about machines that come and go: how often they go (`hazard`), how often to save (`cadence`), how many workers train
(`resize`, with `speed` and `durations`), when a node with a notice is left (`handover`), when a gang hangs (`hangs`), who is
slow in it (`stragglers`), which nodes are not trusted (`quarantine`), how often shards are copied (`replication`), what follows
when memory runs out (`memory_pressure`), and one gang's share of all this (`elasticity`). Pure: values in, values and reasons out; no clock, no
I/O. The simulator and the controller call the same functions."""

from orchestrator.policy.cadence import Plan, SaveCost, checkpoint_interval, slowdown_seconds
from orchestrator.policy.durations import Durations, Span
from orchestrator.policy.elasticity import Elasticity
from orchestrator.policy.hangs import HangLimit, Pause
from orchestrator.policy.hazard import Hazard, Observed, exposure_hours, hazard
from orchestrator.policy.memory_pressure import OutOfMemory, Relief, relieve
from orchestrator.policy.quarantine import Admitted, Fault, Judged, Quarantine
from orchestrator.policy.replication import Replication, replicate_every
from orchestrator.policy.resize import ResizeSense, Situation, Verdict, advantages, decide
from orchestrator.policy.speed import Speed
from orchestrator.policy.stragglers import Leaving, Straggler, Stragglers, leaving

__all__ = [
    "Admitted",
    "Durations",
    "Elasticity",
    "Fault",
    "HangLimit",
    "Hazard",
    "Judged",
    "Leaving",
    "Observed",
    "OutOfMemory",
    "Pause",
    "Plan",
    "Quarantine",
    "Relief",
    "Replication",
    "ResizeSense",
    "SaveCost",
    "Situation",
    "Span",
    "Speed",
    "Straggler",
    "Stragglers",
    "Verdict",
    "advantages",
    "checkpoint_interval",
    "decide",
    "exposure_hours",
    "hazard",
    "leaving",
    "relieve",
    "replicate_every",
    "slowdown_seconds",
]
