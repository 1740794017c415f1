"""The JSON schema of a TrainingJob, for editors and for `orchestrate schema`. Made from the models; draft 2020-12.

It says what one field may hold. Checks across fields, and what is not available in this version beyond the notes in
the descriptions, are the loader's.
"""

from __future__ import annotations

from typing import Any

from orchestrator.spec.models import TrainingJob

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schema() -> dict[str, Any]:
    """The schema as a document; the same for the same version of orchestrate."""
    schema = TrainingJob.model_json_schema(by_alias=True, mode="validation")
    _tidy(schema)
    schema["properties"]["status"] = {
        "type": "object",
        "additionalProperties": True,
        "description": "Written by the controller; ignored when a job is submitted.",
    }
    # These have their default told by the file extension, so a file may leave them away.
    schema["$defs"]["DataFile"]["required"].remove("format")
    # A server writes more metadata than a user does, and a printed job can be submitted again.
    schema["$defs"]["Metadata"]["additionalProperties"] = True
    return {"$schema": DIALECT, **schema}


def _tidy(part: Any) -> None:
    """Drop the titles that repeat names, and move notes of planned fields into their descriptions."""
    if isinstance(part, list):
        for item in part:
            _tidy(item)
        return
    if not isinstance(part, dict):
        return
    if isinstance(part.get("title"), str):
        del part["title"]
    if capability := part.pop("x-planned", None):
        part["description"] += f" Not available in this version (planned: {capability})."
    if values := part.pop("x-planned-values", None):
        part["description"] += f" Not available in this version: {', '.join(values)}."
    for item in part.values():
        _tidy(item)
