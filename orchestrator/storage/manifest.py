"""What a checkpoint says about itself: `manifest.json`, format `orchestrate-checkpoint/1`.

The manifest names every file with its size and hashes, and every range of every parameter with the file that holds it. It
carries a digest of its own canonical JSON, so that a torn or edited manifest is told from a whole one. Readers of format 1
ignore keys that they do not know, and read manifests that lack the later keys; a change of meaning gets a new number.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

FORMAT = "orchestrate-checkpoint/1"
MANIFEST = "manifest.json"
ITEM_BYTES: Mapping[str, int] = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1,
    "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "bool": 1, "complex64": 8, "complex128": 16,
}  # fmt: skip
"""Bytes of one element, by torch's name of the type."""

Role = Literal["trained", "frozen", "buffer"]


class ManifestError(ValueError):
    """The text is not a whole manifest of a known format; the message says why."""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file. A file of up to one block has a sha256; a larger one has an xxh3-128 for each block of 4 MiB, so that a
    reader can check a slice without reading the rest. Manifests of before have a sha256 for files of any size."""

    path: str
    """Relative to the checkpoint's folder, with forward slashes; relative to the store's root when `shared`."""
    bytes: int
    sha256: str = ""
    xxh3: tuple[str, ...] = ()
    shared: bool = False
    """True for a file in `shared/`, which several checkpoints may refer to."""
    name: str = ""
    """What a shared file is in this checkpoint, such as `model/config.json`; its path says only what it holds."""


@dataclass(frozen=True, slots=True)
class World:
    size: int
    """Number of ranks that wrote the checkpoint."""
    micro_batch: int | None = None
    accumulation: int | None = None


@dataclass(frozen=True, slots=True)
class Parameter:
    """A named parameter or buffer of the model."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """The model's own type, such as `bfloat16`; the master copy of a trained parameter may be wider."""
    role: Role
    aliases: tuple[str, ...] = ()
    """Other names of the same tensor (tied weights)."""

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Fragment:
    """Elements [start, end) of the flattened parameter `name`, and where they lie."""

    name: str
    kind: str
    """`master`, `exp_avg`, `exp_avg_sq` or another per-element optimizer state by its own name; `frozen`; `buffer`."""
    dtype: str
    start: int
    end: int
    file: str
    """The path of a file entry."""
    offset: int
    """Where `start` lies in the file, in bytes."""

    @property
    def bytes(self) -> int:
        return (self.end - self.start) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class Manifest:
    global_step: int
    """Optimizer steps that the state contains."""
    samples_seen: int
    world: World
    zero_stage: int | None
    """None for state that a user's own function wrote."""
    layout: str
    """How the files are to be read: `ranges` (fragments of parameters), `context` (states of a user's function), or
    `deepspeed` (DeepSpeed's own folder; written before ranges were)."""
    created_ns: int
    covers_ns: int
    """Time at which the last step in it ended, ns UTC: work after this moment is not in the checkpoint."""
    attempt: int
    files: tuple[FileEntry, ...] = ()
    parameters: tuple[Parameter, ...] = ()
    fragments: tuple[Fragment, ...] = ()
    """Ranges of every parameter, independent of the world size; empty in the other layouts."""
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
        """The manifest as it is written, its own digest included: one line a key, since there may be 100,000 fragments."""
        body = {"format": FORMAT, **{name: _plain(getattr(self, name)) for name in Manifest.__dataclass_fields__}}
        lines = [f"{json.dumps(name)}: {_compact(value)}" for name, value in sorted(body.items())]
        return ("{\n" + ",\n".join([f'"digest": "{_digest(body)}"', *lines]) + "\n}\n").encode()

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
            known = {name: body[name] for name in Manifest.__dataclass_fields__ if name not in _LATER or name in body}
            return Manifest(
                **{
                    **known,
                    "world": _read(World, known["world"]),
                    "files": tuple(_read(FileEntry, entry) for entry in known["files"]),
                    "parameters": tuple(_read(Parameter, entry) for entry in known.get("parameters", ())),
                    "fragments": tuple(_read(Fragment, entry) for entry in known["fragments"]),
                }
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ManifestError(f"the manifest lacks {error}") from error


_LATER = {"parameters"}
"""Keys that manifests of format 1 did not have from the beginning."""

_T = TypeVar("_T", World, FileEntry, Parameter, Fragment)


def _read(kind: type[_T], body: Mapping[str, Any]) -> _T:
    known: dict[str, Any] = {name: body[name] for name in kind.__dataclass_fields__ if name in body}
    for name, value in known.items():
        if isinstance(value, list):
            known[name] = tuple(value)
    return kind(**known)


def _plain(value: Any) -> Any:
    if isinstance(value, (World, FileEntry, Parameter, Fragment)):
        return {name: getattr(value, name) for name in value.__dataclass_fields__}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return dict(value) if isinstance(value, Mapping) else value


def _compact(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(_compact(body).encode()).hexdigest()
