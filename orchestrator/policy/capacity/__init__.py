"""Where a job's workers are rented: which zone, spot or on demand, how many. Pure: values in, a value and a reason out; no clock,
no I/O. The simulator and the controller ask the same objects.

`capacity_policy(name)` gives one of `POLICY_NAMES`; what each does is in docs/capacity-policies.md.
"""

from __future__ import annotations

from orchestrator.policy.capacity.contract import (
    CapacityPolicy,
    Cause,
    Decision,
    Holding,
    Offer,
    RestartOverhead,
    Situation,
    Target,
)
from orchestrator.policy.capacity.history import SpotHistory
from orchestrator.policy.capacity.registry import DEFAULT_POLICY, POLICY_NAMES, capacity_policy

__all__ = [
    "DEFAULT_POLICY",
    "POLICY_NAMES",
    "CapacityPolicy",
    "Cause",
    "Decision",
    "Holding",
    "Offer",
    "RestartOverhead",
    "Situation",
    "SpotHistory",
    "Target",
    "capacity_policy",
]
