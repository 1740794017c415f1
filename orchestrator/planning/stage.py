"""Which ZeRO stage a job trains with, and why.

Auto takes the least that spreading can give without costing speed: nothing on one rank, where there is nobody to share
with; stage 2 on more, which spreads optimizer state and gradients for about the traffic of plain data parallelism. Stage 3
also spreads the weights and pays for it on every step, so only the user asks for it. Whether the choice fits a GPU is
`options`' question.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

from orchestrator.spec.deepspeed_keys import PRESETS
from orchestrator.spec.models import DeepSpeed

Stage = Literal[0, 1, 2, 3]


@dataclass(frozen=True, slots=True)
class StageChoice:
    """A ZeRO stage and the reason for it, as a clause that can follow "because"."""

    stage: Stage
    because: str
    offload: bool
    """Whether the optimizer state lies in main memory."""

    @property
    def preset(self) -> str:
        """Name of the reviewed DeepSpeed preset that belongs to the choice."""
        return f"zero{self.stage}" + ("-offload" if self.offload else "")


def choose_stage(deepspeed: DeepSpeed, world_size: int) -> StageChoice:
    """The stage for `world_size` ranks: the user's, that of the named preset, or chosen."""
    config = deepspeed.config
    named = config if isinstance(config, str) and config in PRESETS else None
    offload = deepspeed.offload == "CPU" or (named is not None and named.endswith("-offload"))
    if deepspeed.stage != "Auto":
        return StageChoice(deepspeed.stage, "the job says so", offload)
    if named is not None:
        return StageChoice(cast(Stage, PRESETS[named]), f"the preset {named} says so", offload)
    if offload:
        reason = "the optimizer state is offloaded, which needs a stage above 0, and stage 2 spreads gradients as well"
        return StageChoice(2, reason, offload)
    if world_size == 1:
        return StageChoice(0, "with one rank there is nobody to share the training state with", offload)
    reason = f"{world_size} ranks can share optimizer state and gradients at the traffic of plain data parallelism"
    return StageChoice(2, reason, offload)
