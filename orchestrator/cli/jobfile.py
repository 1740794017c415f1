"""From a job file to the document that is submitted: read, checked against the disk, and with an absolute working folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.domain.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.cli.context import Context
    from orchestrator.spec import TrainingJob


def read_job(context: Context, file: str, overrides: Sequence[str]) -> TrainingJob:
    """The job in a file. For the controller of this machine, the files and folders that it names must be there; what a
    controller elsewhere has cannot be seen from here. Raises `InvalidSpec` with every problem."""
    from orchestrator.spec import load_file

    return load_file(file, overrides, check_files=not context.settings.url)


def read_for_submission(
    context: Context, file: str, overrides: Sequence[str], *, name: str | None, namespace: str | None
) -> tuple[TrainingJob, dict[str, Any]]:
    """The job and the document to submit. A namespace in the file must not contradict the one of the command line."""
    extra = [] if name is None else [f"metadata.name={name}"]
    job = read_job(context, file, [*overrides, *extra])
    written = "namespace" in job.metadata.model_fields_set
    if written and namespace is not None and job.metadata.namespace != namespace:
        raise UsageError(
            f"{file} is for the namespace {job.metadata.namespace}, not {namespace}",
            hint="leave --namespace away, or change the file with --set metadata.namespace=...",
        )
    wanted = context.settings.namespace
    if not written and wanted != job.metadata.namespace:
        job = read_job(context, file, [*overrides, *extra, f"metadata.namespace={wanted}"])
    document = job.model_dump(mode="json", by_alias=True, exclude_none=True)
    folder = Path(file).parent / (job.spec.runtime.working_dir or ".")
    document["spec"].setdefault("runtime", {})["workingDir"] = str(folder.resolve())
    return job, document
