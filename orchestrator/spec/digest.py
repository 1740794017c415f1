"""One number for what a job asks for, so that submitting the same thing twice can be told from a change."""

from __future__ import annotations

import hashlib
import json

from orchestrator.spec.models import TrainingJob


def spec_digest(job: TrainingJob) -> str:
    """SHA-256, in hexadecimal, of the canonical JSON of `spec` and `metadata.labels`.

    Defaults are written out first: a file that spells a default out and one that leaves it away have one digest.
    """
    document = job.model_dump(mode="json", by_alias=True, exclude_none=True)
    asked = {"labels": document["metadata"].get("labels", {}), "spec": document["spec"]}
    return hashlib.sha256(json.dumps(asked, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
