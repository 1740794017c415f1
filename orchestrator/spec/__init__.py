"""The job document: what a user may write, how it is read, and what is said when it is wrong.

One set of typed models is the only source of the document: validation, JSON schema, the reference page and `config
explain` all come from it. Names are loaded on first use, so that importing this package costs nothing: pydantic alone
takes a tenth of a second, and most verbs of the command line never look at a job file.

Limits: this package reads text and looks for files; it knows no data, no model and no hardware.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.spec.digest import spec_digest as spec_digest
    from orchestrator.spec.loader import load_file as load_file
    from orchestrator.spec.loader import parse_document as parse_document
    from orchestrator.spec.loader import parse_text as parse_text
    from orchestrator.spec.models import TrainingJob as TrainingJob
    from orchestrator.spec.models import TrainingJobSpec as TrainingJobSpec
    from orchestrator.spec.paths import check_paths as check_paths
    from orchestrator.spec.reference import explain as explain
    from orchestrator.spec.schema import json_schema as json_schema
    from orchestrator.spec.templates import templates as templates

_HOMES = {
    "TrainingJob": "models",
    "TrainingJobSpec": "models",
    "check_paths": "paths",
    "explain": "reference",
    "json_schema": "schema",
    "load_file": "loader",
    "parse_document": "loader",
    "parse_text": "loader",
    "spec_digest": "digest",
    "templates": "templates",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
