"""Small checkpoints to try things on."""

from __future__ import annotations

from pathlib import Path

from orchestrator import storage


def facts(step: int, attempt: int = 1, **fields: object) -> storage.Manifest:
    """A manifest of one rank's checkpoint, before its files are known."""
    whole: dict[str, object] = {
        "global_step": step,
        "samples_seen": step * 32,
        "world": storage.World(2, 8, 2),
        "zero_stage": 2,
        "layout": "deepspeed",
        "created_ns": 5,
        "covers_ns": 4,
        "attempt": attempt,
        "fingerprint": "f",
        **fields,
    }
    return storage.Manifest(**whole)  # type: ignore[arg-type]


def write_files(partial: Path, step: int) -> None:
    (partial / "deepspeed").mkdir(exist_ok=True)
    (partial / "deepspeed" / "model.pt").write_bytes(bytes([step % 256]) * 1000)
    (partial / "rank-00000.pt").write_bytes(b"random numbers")


def save(uri: Path, step: int, attempt: int = 1, **fields: object) -> storage.Listed:
    partial = storage.begin(str(uri), step, attempt)
    write_files(partial, step)
    return storage.commit(partial, facts(step, attempt, **fields))
