"""What an engine hands to a worker, typed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.spec.models import TrainingJob, TrainingJobSpec
from orchestrator.training.errors import config_invalid


@dataclass(frozen=True, slots=True)
class Assignment:
    """One attempt of one job, as all of its ranks see it."""

    job: TrainingJob
    uid: str
    attempt: int
    """Number of this run of the gang, from 1."""
    world_size: int
    run_dir: Path
    checkpoint_uri: str
    working_dir: Path
    threads: int
    micro_batch: int | None = None
    """Instead of the job's: a larger one ran out of memory."""

    @property
    def spec(self) -> TrainingJobSpec:
        return self.job.spec


def read_assignment(assignment: Mapping[str, Any]) -> Assignment:
    """The assignment of contract `worker`. Raises ConfigInvalid when the document or a field is not as agreed."""
    try:
        return Assignment(
            job=TrainingJob.model_validate(assignment["spec"]),
            uid=str(assignment["job"]["uid"]),
            attempt=int(assignment["attempt"]),
            world_size=int(assignment["world_size"]),
            run_dir=Path(assignment["run_dir"]),
            checkpoint_uri=str(assignment["checkpoint_uri"]),
            working_dir=Path(assignment["working_dir"]),
            threads=max(1, int(assignment["threads"])),
            micro_batch=None if assignment.get("micro_batch") is None else int(assignment["micro_batch"]),
        )
    except KeyError as error:
        raise config_invalid(f"the assignment of this worker lacks {error}") from error
    except (TypeError, ValueError) as error:
        raise config_invalid(f"the assignment of this worker cannot be read: {error}") from error
