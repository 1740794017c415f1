"""What DeepSpeed and torch keep for a whole process, set back, so that an engine made later meets others on equal terms.

DeepSpeed numbers parameters and modules through counters of the process and keeps its communication backend in a module.
A process that has had an engine before therefore differs from one that has not, and ZeRO-3 refuses to gather among them
("disagreement on list contents"). Here they are made equal again.

Limits: the insides of DeepSpeed 0.19.8, which `deepspeed_state` is bound to as well. Modules that an engine was made around
keep their hooks: make the next engine around another copy. ZeRO-3's replacement of torch's linear function stays.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def leave_world(torch: Any, deepspeed: Any) -> None:
    """End the process group, in torch and in DeepSpeed, and forget every engine. No group: nothing to end."""
    if torch.distributed.is_initialized():
        deepspeed.comm.destroy_process_group()
    deepspeed.comm.comm.cdb = None
    forget_engines()


def forget_engines() -> None:
    """Set the counters and caches back that ZeRO-3 keeps across engines."""
    from deepspeed.runtime.zero import parameter_offload, partition_parameters, partitioned_param_coordinator

    init = partition_parameters.Init
    init.param_id = 0
    init.num_persisted_parameters = 0
    init.num_persisted_elements = 0
    register = parameter_offload.DeepSpeedZeRoOffload._register_deepspeed_module
    for default in register.__defaults__ or ():
        if isinstance(default, list):  # the count of modules lives in a mutable default argument
            default[:] = [0]
    parameter_offload.FWD_MODULE_STACK.clear()
    for value in vars(partitioned_param_coordinator.PartitionedParameterCoordinator).values():
        for function in _within(value):
            if hasattr(function, "cache_clear"):  # its keys are engines, and with them process groups and weights
                function.cache_clear()


def fingerprint() -> tuple[Any, ...]:
    """What `forget_engines` sets back, as it is now: equal in processes that can meet."""
    from deepspeed.runtime.zero import parameter_offload, partition_parameters

    init = partition_parameters.Init
    register = parameter_offload.DeepSpeedZeRoOffload._register_deepspeed_module
    modules = [tuple(default) for default in register.__defaults__ or () if isinstance(default, list)]
    numbers = (init.param_id, init.num_persisted_parameters, init.num_persisted_elements)
    return (*numbers, *modules, len(parameter_offload.FWD_MODULE_STACK))


def _within(value: Any) -> Iterator[Any]:
    """A function and those that its decorators wrap, which DeepSpeed's hide in closures."""
    yield value
    for cell in getattr(value, "__closure__", None) or ():
        try:
            inner = cell.cell_contents
        except ValueError:  # a name that was never bound
            continue
        if callable(inner):
            yield from _within(inner)
