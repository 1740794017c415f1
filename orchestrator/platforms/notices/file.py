"""A file: for operators, for other tools, for tests.

    echo '{"kind": "drain"}' > /run/orchestrate/notices.json          leave this node
    echo '{"kind": "drain", "in_seconds": 60}' > ...                  ... within a minute from when it is read
    echo '[{"kind": "interruption", "deadline": "2026-09-18T08:22:00Z", "id": "a", "node": "node-3"}]' > ...
    rm /run/orchestrate/notices.json                                  never mind

One object or a list of them; only `kind` must be there. An empty or missing file is no notice. What cannot be read as this
changes nothing and is told once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from orchestrator.domain.notices import NoticeKind
from orchestrator.platforms.notices.base import Sighting, Source, Unreadable, View, instant_ns, seconds


class NoticeFile(Source):
    """Read anew at every look; a file of a few hundred bytes costs nothing."""

    name = "file"

    def __init__(self, path: Path, every_seconds: float = 0.5) -> None:
        self.every_seconds = every_seconds
        self._path = path

    def look(self) -> View:
        try:
            text = self._path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return {}
        except (OSError, UnicodeDecodeError) as error:
            raise Unreadable(f"{self._path}: {error}") from None
        if not text.strip():
            return {}
        try:
            document = json.loads(text)
        except (ValueError, RecursionError):
            raise Unreadable(f"{self._path} is not JSON") from None
        entries = document if isinstance(document, list) else [document]
        return dict(self._read(number, entry) for number, entry in enumerate(entries))

    def _read(self, number: int, entry: object) -> tuple[str, Sighting]:
        if not isinstance(entry, Mapping):
            raise Unreadable(f"{self._path}: {str(entry)[:60]!r} is not an object")
        kinds = ", ".join(NoticeKind)
        if entry.get("kind") not in list(NoticeKind):
            raise Unreadable(f"{self._path}: kind {entry.get('kind')!r} is none of {kinds}")
        deadline, lead, node = entry.get("deadline"), entry.get("in_seconds"), entry.get("node")
        at_ns = instant_ns(deadline)
        if deadline is not None and at_ns is None:
            raise Unreadable(f"{self._path}: deadline {deadline!r} is not an instant such as 2026-09-18T08:22:00Z")
        if lead is not None and (isinstance(lead, bool) or not isinstance(lead, int | float) or not 0 <= lead < 1e9):
            raise Unreadable(f"{self._path}: in_seconds {lead!r} is not a number of seconds")
        if node is not None and not isinstance(node, str):
            raise Unreadable(f"{self._path}: node {node!r} is not a name")
        lead_ns = None if lead is None else seconds(lead)
        return str(entry.get("id", number)), Sighting(NoticeKind(entry["kind"]), at_ns, lead_ns, node)
