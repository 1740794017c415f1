"""Inside a worker: data, model, DeepSpeed engine, checkpoints, evaluation; and `Context` for functions of the user's own.

Nothing heavy is imported here: torch, transformers and DeepSpeed load when a run begins.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.training.context import Context as Context

__all__ = ["Context"]


def __getattr__(name: str) -> Any:
    if name == "Context":
        from orchestrator.training.context import Context

        return Context
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
