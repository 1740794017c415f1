"""What to do about machines that come and go: how often they go (`hazard`), and how often to save (`cadence`). Pure: values
in, values and reasons out; no clock, no I/O. The simulator and the controller call the same functions."""

from orchestrator.policy.cadence import Plan, SaveCost, checkpoint_interval, slowdown_seconds
from orchestrator.policy.hazard import Hazard, Observed, exposure_hours, hazard

__all__ = [
    "Hazard",
    "Observed",
    "Plan",
    "SaveCost",
    "checkpoint_interval",
    "exposure_hours",
    "hazard",
    "slowdown_seconds",
]
