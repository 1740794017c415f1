"""Errors as `application/problem+json` (RFC 9457), and back. Both ends of the REST API use this module, so that an error
raised in the controller is the same error in the command line. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from orchestrator.domain import errors
from orchestrator.domain.errors import InvalidSpec, OrchestrateError, PlatformError, Problem

MEDIA_TYPE = "application/problem+json"


def to_problem(error: OrchestrateError, status: int | None = None) -> dict[str, Any]:
    """The document of an error. `status` where the HTTP status is more exact than the error's own."""
    document: dict[str, Any] = {
        "type": f"urn:orchestrate:error:{error.code}",
        "title": _title(error.code),
        "status": error.http_status if status is None else status,
        "detail": error.what,
        "code": error.code,
        "exitCode": int(error.exit_code),
        "hint": error.hint,
    }
    if isinstance(error, InvalidSpec):
        document["problems"] = [asdict(problem) for problem in error.problems]
    return document


def from_problem(document: Mapping[str, Any]) -> OrchestrateError:
    """The error of a document; a class that this version does not know becomes a `PlatformError` that names it."""
    code, hint = str(document.get("code", "")), document.get("hint")
    what = str(document.get("detail") or document.get("title") or "the controller refused")
    kind = getattr(errors, code, None)
    if not (isinstance(kind, type) and issubclass(kind, OrchestrateError)):
        return PlatformError(f"{what} ({code})" if code else what, hint=hint)
    if kind is InvalidSpec:
        fields = Problem.__dataclass_fields__
        problems = [{key: item for key, item in raw.items() if key in fields} for raw in document.get("problems", ())]
        return InvalidSpec([Problem(**problem) for problem in problems])
    return kind(what, hint=hint)


def _title(code: str) -> str:
    """`NotFound` becomes `Not found`."""
    words = "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in code).strip()
    return words[:1].upper() + words[1:]
