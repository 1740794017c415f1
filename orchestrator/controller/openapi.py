"""The OpenAPI document of the REST API: FastAPI's own, with the schema of a TrainingJob from `spec` in it."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from orchestrator import __version__
from orchestrator.controller.problems import MEDIA_TYPE
from orchestrator.spec import json_schema

_TEXT = {"type": "string"}
_MAYBE_TEXT = {"type": ["string", "null"]}

_PROBLEM = {
    "type": "object",
    "description": "An error (RFC 9457). `code` is the name of the error class, `hint` says what to do.",
    "required": ["type", "title", "status", "detail", "code", "exitCode", "hint"],
    "properties": {
        "type": _TEXT,
        "title": _TEXT,
        "status": {"type": "integer"},
        "detail": _TEXT,
        "code": _TEXT,
        "exitCode": {"type": "integer", "description": "Exit code of the command line for this error."},
        "hint": _MAYBE_TEXT,
        "problems": {
            "type": "array",
            "description": "Of an InvalidSpec: everything that is wrong with the job.",
            "items": {
                "type": "object",
                "properties": {
                    "path": _TEXT,
                    "what": _TEXT,
                    "hint": _MAYBE_TEXT,
                    "file": _MAYBE_TEXT,
                    "line": {"type": ["integer", "null"]},
                    "column": {"type": ["integer", "null"]},
                },
            },
        },
    },
}
_LIST = {
    "type": "object",
    "required": ["kind", "items", "metadata"],
    "properties": {
        "kind": {"const": "TrainingJobList"},
        "items": {"type": "array", "items": {"$ref": "#/components/schemas/TrainingJob"}},
        "metadata": {
            "type": "object",
            "properties": {
                "continue": {
                    **_MAYBE_TEXT,
                    "description": "Pass it on as `continue` for the next page; null on the last.",
                },
                "resourceVersion": _TEXT,
            },
        },
    },
}


def reference(name: str) -> dict[str, Any]:
    """A response or request body that is one of the components."""
    return {"content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}}


def answers(name: str, status: int = 200, text: str = "Done.") -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that answers with a component."""
    return {status: {"description": text, **reference(name)}}


def describe(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(
        title="orchestrate",
        version=__version__,
        description="Submit training jobs, follow them, and know what every dollar did.",
        routes=app.routes,
    )
    schema = _moved(json_schema())
    schema.pop("$schema", None)
    parts = schema.pop("$defs", {})
    components = document.setdefault("components", {})
    ours = {"TrainingJob": schema, "TrainingJobList": _LIST, "Problem": _PROBLEM, **parts}
    of_parameters = {
        name: part for name, part in components.get("schemas", {}).items() if "ValidationError" not in name
    }
    schemas = {**of_parameters, **ours}
    components["schemas"] = dict(sorted(schemas.items()))
    components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    refused = {
        "description": "Refused or failed.",
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    for path, operations in document["paths"].items():
        for operation in operations.values():
            operation["responses"].pop("422", None)
            operation["responses"]["default"] = refused
            if path.startswith("/v1/"):
                operation["security"] = [{"token": []}]
    return document


def _moved(part: Any) -> Any:
    """References into `$defs` point into the components instead."""
    if isinstance(part, dict):
        moved = {key: _moved(item) for key, item in part.items()}
        if isinstance(to := moved.get("$ref"), str):
            moved["$ref"] = to.replace("#/$defs/", "#/components/schemas/")
        return moved
    return [_moved(item) for item in part] if isinstance(part, list) else part
