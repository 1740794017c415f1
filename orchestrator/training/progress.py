"""Where a run of the built-in trainer is: what must survive a restart beside the engine's state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from orchestrator.training.errors import config_invalid
from orchestrator.training.reporting import StepReports


@dataclass
class Progress:
    """Counters of whole global batches, early stopping, and the step reports since the checkpoint before."""

    step: int = 0
    samples_seen: int = 0
    best_value: float | None = None
    best_step: int | None = None
    best_metrics: dict[str, float] = field(default_factory=dict)
    evaluations_without_improvement: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    """The newest validation metrics."""
    stopped_early: bool = False
    reports: StepReports = field(default_factory=StepReports)

    def to_document(self, newest_reports: int | None = None) -> dict[str, Any]:
        """JSON-able; shares its parts with this object, so it is to be written at once. With a number, that many reports."""
        kept = self.reports.kept if newest_reports is None else self.reports.kept[-newest_reports:]
        return {entry.name: getattr(self, entry.name) for entry in fields(self)} | {"reports": {"kept": kept}}

    @classmethod
    def from_document(cls, document: Any) -> Progress:
        """Raises ConfigInvalid for a document that another version wrote and this one does not understand."""
        known = {entry.name for entry in fields(cls)}
        if (
            not isinstance(document, Mapping)
            or document.keys() != known
            or not isinstance(document["reports"], Mapping)
        ):
            raise config_invalid(
                "the checkpoint's trainer.json is not of this version's form",
                "resume with the version of orchestrate that wrote it (see versions in manifest.json), or use another checkpoint.uri",
            )
        return cls(**{**document, "reports": StepReports(list(document["reports"]["kept"]))})
