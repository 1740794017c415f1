"""The one who is killed: saves small checkpoints without end, until SIGKILL.

Run as a script it is their mother: each line on its stdin is a job (JSON), for which it forks a child, lets it save for the
given time after it has entered so many phases, kills it, and answers with all that the child had said. Forking spares every child the start.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from orchestrator.storage import Draft, FileEntry, Fragment, Manifest, Parameter, Retention, Store, World, open_store

FROZEN = (b"frozen weights" * 300, b"other frozen weights" * 200)
WORD_SECONDS = 120.0
_NOISE = random.Random(0).randbytes(2**20)


def weights(step: int, size: int) -> bytes:
    """`size` bytes that differ from step to step."""
    head = step.to_bytes(8, "little")
    return (head + _NOISE[step % 1000 :] + _NOISE * (size // len(_NOISE) + 1))[:size]


def facts(step: int, attempt: int, size: int, *, best: bool, frozen: int) -> Manifest:
    return Manifest(
        global_step=step,
        samples_seen=step,
        world=World(1),
        zero_stage=2,
        layout="ranges",
        created_ns=step,
        covers_ns=step,
        attempt=attempt,
        parameters=(Parameter("w", (size,), "uint8", "trained"),),
        fragments=(Fragment("w", "master", "uint8", 0, size, "rank-00000.bin", 0),),
        metrics={"frozen": float(frozen)},
        best=best,
    )


def write(draft: Draft, step: int, size: int, frozen: int) -> list[FileEntry]:
    content = memoryview(weights(step, size))
    return [
        draft.write("rank-00000.bin", [content[:1000], content[1000:]], large=True),
        draft.write("trainer.json", [b'{"step": %d}' % step]),
        draft.write_shared([FROZEN[frozen]]),
    ]


def live(
    store: Store, attempt: int, rng: random.Random, size: int, retention: Retention, say: Callable[[str], None]
) -> None:
    """Clean up, then save and prune for ever."""
    say("phase clean")
    store.clean_leftovers(attempt)
    step = 0
    for listed in store.list():
        step = max(step, listed.step)
        if listed.manifest is not None:
            say(_row("sees", listed.step, listed.manifest.best, int(listed.manifest.metrics["frozen"])))
    while True:
        step += 1
        best, frozen = rng.random() < 0.2, rng.randrange(2)
        say("phase write")
        draft = store.draft(step, attempt)
        draft.begin()
        entries = write(draft, step, size, frozen)
        say("phase commit")
        listed = draft.commit(facts(step, attempt, size, best=best, frozen=frozen), entries, read_back=True)
        say(_row("saved", step, best, frozen))
        say("phase prune")
        store.prune(retention, verified=[listed.uri])


def _row(word: str, step: int, best: bool, frozen: int) -> str:
    return f"{word} {step} {int(best)} {frozen}"


def _one(job: Mapping[str, Any]) -> dict[str, Any]:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            store = open_store(job["uri"], options=job["options"])
            retention = Retention(**job["retention"])

            def say(line: str) -> None:
                os.write(writing, line.encode() + b"\n")

            live(store, job["attempt"], random.Random(job["seed"]), job["size"], retention, say)
        except BaseException as error:  # noqa: BLE001  # the process's edge: whatever it was, the parent is to hear of it
            os.write(writing, f"failed {error!r}\n".encode())
        finally:
            os._exit(1)
    os.close(writing)
    heard = bytearray()
    deadline = None
    while True:
        patience = WORD_SECONDS if deadline is None else max(0.0, deadline - time.monotonic())
        ready, _, _ = select.select([reading], [], [], patience)
        piece = os.read(reading, 65536) if ready else b""
        if not piece:
            break
        heard += piece
        if deadline is None and heard.count(b"phase") >= job["phases"]:
            deadline = time.monotonic() + job["seconds"]
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    while piece := os.read(reading, 65536):
        heard += piece
    os.close(reading)
    return {"killed": os.WIFSIGNALED(status), "lines": heard.decode().splitlines()}


def main() -> None:
    open_store("memory://warm")
    if "s3" in sys.argv[1:]:
        import s3fs  # noqa: F401
    for line in sys.stdin:
        print(json.dumps(_one(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
