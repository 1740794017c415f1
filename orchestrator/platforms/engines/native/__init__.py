"""The elastic engine: its coordinator here in the driver, an agent a node, workers as the agents' child processes."""

from orchestrator.platforms.engines.native.engine import NativeEngine

__all__ = ["NativeEngine"]
