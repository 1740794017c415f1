"""What of a run is not per element, as plain values: step numbers, hyperparameters, counters, scheduler, loss scaler.

Every rank holds all of it, and it is the same on all, so rank 0 writes it and every rank applies it. ZeRO keeps one step
number for a whole group of parameters, stage 0 one for each; a checkpoint names each parameter's, so that unequal numbers
are refused where they cannot be kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.training.deepspeed_state import MASTER, STEP, Holder, Layout, element_kinds, repeat_steps
from orchestrator.training.errors import config_invalid

Step = int | float | None
"""Optimizer steps of a holder; None when its optimizer does not count."""
HOW_NOT_WHAT = frozenset({"params", "foreach", "fused", "capturable", "differentiable", "name"})
"""Keys of a param group that say how the optimizer computes, not what; they stay as the present engine has them."""
SCALER_FIELDS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
COUNTERS = ("global_steps", "global_samples", "skipped_steps")
SHOWN = 3
"""How many odd parameters a message lists."""


def collect(layout: Layout, holders: Sequence[Holder]) -> dict[str, Any]:
    """The scalars of an engine, JSON-able. Raises ConfigInvalid for values that are not plain."""
    engine, inner = layout.engine, layout.inner
    steps = _steps(layout, holders)
    most = Counter(steps.values()).most_common(1)[0][0] if steps else 0
    members = _members(layout, holders)
    return {
        "optimizer": {
            "steps": most,
            "steps_of": {name: step for name, step in steps.items() if step != most},
            "groups": [
                {
                    "kinds": [MASTER, *element_kinds(inner, group)],
                    "members": members[number],
                    "values": {
                        key: _plain(value, f"the optimizer's {key}")
                        for key, value in group.items()
                        if key not in HOW_NOT_WHAT
                    },
                }
                for number, group in enumerate(inner.param_groups)
            ],
        },
        "engine": {
            **{name: getattr(engine, name) for name in COUNTERS},
            "micro_steps": engine.micro_steps,
            "accumulation": engine.gradient_accumulation_steps(),
        },
        "lr_scheduler": _scheduler(engine.lr_scheduler),
        "loss_scaler": _scaler_fields(layout.scaler()),
    }


def accept(layout: Layout, holders: Sequence[Holder], scalars: Mapping[str, Any]) -> list[Step]:
    """The step number that each holder will have. Raises ConfigInvalid when the scalars do not fit; changes nothing."""
    optimizer, present = scalars["optimizer"], collect(layout, holders)
    old, new = optimizer["groups"], present["optimizer"]["groups"]
    if [group["members"] for group in old] != [group["members"] for group in new]:
        raise config_invalid(
            f"the checkpoint's {len(old)} param groups hold other parameters than the {len(new)} of this optimizer",
            "group the parameters as in the run that wrote it",
        )
    for before, after in zip(old, new, strict=True):
        if before["kinds"] != after["kinds"]:
            raise config_invalid(
                f"the checkpoint's optimizer keeps {', '.join(before['kinds'])} and this one {', '.join(after['kinds'])}",
                "resume with the optimizer that wrote it",
            )
    before, after = (side["lr_scheduler"] and side["lr_scheduler"]["class"] for side in (scalars, present))
    if before != after:
        raise config_invalid(
            f"the checkpoint has {_article(before)} and this engine {_article(after)}",
            "resume with the scheduler that wrote it",
        )
    return [_step_for(layout, holder, optimizer) for holder in holders]


def apply(layout: Layout, holders: Sequence[Holder], steps: Sequence[Step], scalars: Mapping[str, Any]) -> None:
    """Give an engine the scalars that `accept` found to fit."""
    import torch

    engine = layout.engine
    for holder, step in zip(holders, steps, strict=True):
        state = layout.state(holder)
        if torch.is_tensor(state.get(STEP)):
            state[STEP].fill_(step)
        elif step is not None:
            state[STEP] = step
    for group, saved in zip(layout.inner.param_groups, scalars["optimizer"]["groups"], strict=True):
        for key, value in saved["values"].items():
            if torch.is_tensor(group.get(key)):
                group[key].fill_(value)
            else:
                group[key] = tuple(value) if isinstance(value, list) else value
    repeat_steps(layout.inner, [holder.group for holder in holders], int(max(filter(None, steps), default=0)))
    if scalars["lr_scheduler"] is not None:
        engine.lr_scheduler.load_state_dict(scalars["lr_scheduler"]["state"])
    scaler = layout.scaler()
    for field in scalars["loss_scaler"].keys() & _scaler_fields(scaler).keys():
        setattr(scaler, field, scalars["loss_scaler"][field])
    counters = scalars["engine"]
    for name in COUNTERS:
        setattr(engine, name, counters[name])
    # DeepSpeed takes a step at every multiple of the present accumulation.
    engine.micro_steps = counters["micro_steps"] // counters["accumulation"] * engine.gradient_accumulation_steps()


def _steps(layout: Layout, holders: Sequence[Holder]) -> dict[str, int | float]:
    """The optimizer's step number of each trained parameter; whole numbers as int."""
    found: dict[str, int | float] = {}
    for holder in holders:
        step = layout.state(holder).get(STEP)
        if step is not None:
            number = float(step)
            found |= dict.fromkeys(holder.members, int(number) if number.is_integer() else number)
    return found


def _members(layout: Layout, holders: Sequence[Holder]) -> list[list[str]]:
    """Names of the parameters of each param group, sorted: who exports or imports has no other way to know them."""
    names: list[set[str]] = [set() for _ in layout.inner.param_groups]
    for holder in holders:
        names[holder.group].update(holder.members)
    return [sorted(group) for group in names]


def _step_for(layout: Layout, holder: Holder, optimizer: Mapping[str, Any]) -> Step:
    if STEP not in layout.state(holder):
        return None
    most = optimizer["steps"]
    steps: dict[str, int | float] = {name: optimizer["steps_of"].get(name, most) for name in holder.members}
    if len(set(steps.values())) > 1:
        odd = [f"{step} of {name}" for name, step in steps.items() if step != most]
        raise config_invalid(
            f"the optimizer has taken {most} steps of most parameters and {', '.join(odd[:SHOWN])}; this ZeRO stage keeps "
            "one number for all of a group",
            "resume with deepspeed.stage 0",
        )
    return next(iter(steps.values()))


def _scheduler(scheduler: Any) -> dict[str, Any] | None:
    if scheduler is None:
        return None
    name = type(scheduler).__name__
    return {"class": name, "state": _plain(scheduler.state_dict(), f"the state of the scheduler {name}")}


def _scaler_fields(scaler: Any) -> dict[str, Any]:
    """What a dynamic loss scaler has learned; nothing of a fixed scale, which is that of the configuration."""
    if not (getattr(scaler, "dynamic", False) or getattr(scaler, "dynamic_loss_scale", False)):
        return {}
    return {field: getattr(scaler, field) for field in SCALER_FIELDS if getattr(scaler, field, None) is not None}


def _article(scheduler: str | None) -> str:
    return "no scheduler" if scheduler is None else f"the scheduler {scheduler}"


def _plain(value: Any, what: str) -> Any:
    """`value` as JSON gives it back; a tensor of one element as its number. Raises ConfigInvalid for anything else."""
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        value = value.item()
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _plain(item, what) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, what) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise config_invalid(
        f"{what} holds a {type(value).__name__}, which a checkpoint cannot keep", "use plain numbers and texts there"
    )
