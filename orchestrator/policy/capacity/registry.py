"""The capacity policies by name, as `spec.capacity.policy` and `orchestrate simulate --policy` name them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence

from orchestrator.domain.errors import UsageError
from orchestrator.policy.capacity.auto import Auto
from orchestrator.policy.capacity.contract import CapacityPolicy
from orchestrator.policy.capacity.greedy import Greedy
from orchestrator.policy.capacity.on_demand import OnDemand
from orchestrator.policy.capacity.slack_reserve import SlackReserve
from orchestrator.policy.capacity.uniform_progress import UniformProgress

_POLICIES: Mapping[str, Callable[[], CapacityPolicy]] = {
    policy.name: policy for policy in (Auto, OnDemand, Greedy, UniformProgress, SlackReserve)
}
POLICY_NAMES = tuple(_POLICIES)
DEFAULT_POLICY = Auto.name


def capacity_policy(name: str, without: Sequence[str] = ()) -> CapacityPolicy:
    """A fresh policy of this name. `without`: recorded markets that `auto` may not know (beginnings of their names). Raises UsageError for another name, with the nearest right one."""
    policy = _POLICIES.get(name)
    if policy is None:
        near = difflib.get_close_matches(name, _POLICIES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"one of: {', '.join(_POLICIES)}"
        raise UsageError(f"there is no capacity policy {name!r}", hint=hint)
    return Auto(without) if policy is Auto else policy()
