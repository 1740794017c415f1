"""One number for what a job asks for, so that submitting the same thing twice can be told from a change.

Fields that have their default are left out: a file that spells a default out and one that leaves it away have one
digest, and a later version that adds a field does not change the digests that journals already hold.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from orchestrator.spec.fields import alias_of
from orchestrator.spec.models import Part, TrainingJob


def spec_digest(job: TrainingJob) -> str:
    """SHA-256, in hexadecimal, of the canonical JSON of what `spec` and `metadata.labels` say beyond the defaults."""
    asked = {"labels": job.metadata.labels, "spec": _beyond_defaults(job.spec)}
    return hashlib.sha256(json.dumps(asked, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _beyond_defaults(value: Any) -> Any:
    if isinstance(value, Part):
        return {
            alias_of(name, field): _beyond_defaults(item)
            for name, field in type(value).model_fields.items()
            if (item := getattr(value, name)) != field.get_default(call_default_factory=True, validated_data={})
        }
    return [_beyond_defaults(item) for item in value] if isinstance(value, list) else value
