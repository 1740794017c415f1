"""What a checkpoint says about itself: `manifest.json`, format `orchestrate-checkpoint/1`.

The manifest names every file with its size and sha256, and carries a digest of its own canonical JSON, so that a torn or
edited manifest is told from a whole one. Readers of format 1 ignore keys that they do not know; a change of meaning gets a
new number.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

FORMAT = "orchestrate-checkpoint/1"
MANIFEST = "manifest.json"


class ManifestError(ValueError):
    """The text is not a whole manifest of a known format; the message says why."""


@dataclass(frozen=True, slots=True)
class FileEntry:
    path: str
    """Relative to the checkpoint's folder, with forward slashes."""
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class World:
    size: int
    """Number of ranks that wrote the checkpoint."""
    micro_batch: int | None = None
    accumulation: int | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    global_step: int
    """Optimizer steps that the state contains."""
    samples_seen: int
    world: World
    zero_stage: int | None
    """None for state that a user's own function wrote."""
    layout: str
    """How the files are to be read: `deepspeed` (DeepSpeed's own folder) or `context` (states of a user's function)."""
    created_ns: int
    covers_ns: int
    """Time at which the last step in it ended, ns UTC: work after this moment is not in the checkpoint."""
    attempt: int
    files: tuple[FileEntry, ...] = ()
    fragments: tuple[Mapping[str, Any], ...] = ()
    """Ranges of every parameter, independent of the world size; empty in the `deepspeed` layout."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    best: bool = False
    """True when the evaluation at this step was the best so far; the newest one that is true is the best of all."""
    fingerprint: str = ""
    """Identity of model, data and batch order; resuming under another one is refused."""
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def total_bytes(self) -> int:
        return sum(entry.bytes for entry in self.files)

    def to_json(self) -> bytes:
        """The manifest as it is written, its own digest included."""
        body = {"format": FORMAT, **asdict(self)}
        return (json.dumps({**body, "digest": _digest(body)}, indent=1, sort_keys=True) + "\n").encode()

    @staticmethod
    def from_json(content: bytes) -> Manifest:
        """Read a manifest back. Raises ManifestError for a torn, edited or foreign one."""
        try:
            body = json.loads(content)
        except (ValueError, UnicodeDecodeError) as error:
            raise ManifestError("the manifest is torn or not JSON") from error
        if not isinstance(body, dict):
            raise ManifestError("the manifest is not a JSON object")
        if body.get("format") != FORMAT:
            raise ManifestError(f"the manifest's format is {body.get('format')!r}; this version reads {FORMAT}")
        if body.pop("digest", None) != _digest(body):
            raise ManifestError("the manifest does not match its own digest")
        try:
            known = {name: body[name] for name in Manifest.__dataclass_fields__}
            world = World(**{name: known["world"].get(name) for name in World.__dataclass_fields__})
            files = tuple(
                FileEntry(**{name: entry[name] for name in FileEntry.__dataclass_fields__}) for entry in known["files"]
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ManifestError(f"the manifest lacks {error}") from error
        return Manifest(**{**known, "world": world, "files": files, "fragments": tuple(known["fragments"])})


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
