"""Worker loops of the engine contract tests: each shows one thing, none needs torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PATIENCE_SECONDS = 60.0
"""A loop that waits for something gives up after this, so that a broken engine fails its test and not the whole run."""
DONE = {"outcome": "succeeded", "reason": "Completed"}


def rank_of(link: Any) -> int:
    """An engine that has processes names the rank in the environment; one of threads on its link."""
    return int(link.rank if hasattr(link, "rank") else os.environ["RANK"])


def count(assignment: Mapping[str, Any], link: Any) -> dict[str, Any]:
    """Each rank sends ten numbered events and returns its rank."""
    rank = rank_of(link)
    for number in range(10):
        link.send({"kind": "count", "rank": rank, "number": number})
    return {**DONE, "rank": rank, "attempt": assignment["attempt"]}


def raise_own(assignment: Mapping[str, Any], link: Any) -> dict[str, Any]:
    """Rank 1 fails in code of its own; the others wait for it, as in a collective call."""
    if rank_of(link) == 1:
        raise ValueError("the sky fell")
    return wait_for_stop(assignment, link)


class Classified(Exception):
    """Shaped as the training code's WorkerFailed, and not picklable."""

    def __init__(self, reason: str, message: str, hint: str) -> None:
        super().__init__()
        self.reason = reason
        self.message = message
        self.hint = hint
        self.lock = threading.Lock()


def raise_classified(assignment: Mapping[str, Any], link: Any) -> dict[str, Any]:
    """Rank 0 tells why it ends."""
    if rank_of(link) == 0:
        raise Classified("DataInvalid", "train.csv has no rows", "add some")
    return wait_for_stop(assignment, link)


def wait_for_stop(assignment: Mapping[str, Any], link: Any) -> dict[str, Any]:
    """Every rank says that it waits, and returns when it is asked to stop."""
    link.send({"kind": "waiting", "rank": rank_of(link), "pid": os.getpid()})
    pause = threading.Event()
    for _ in range(round(PATIENCE_SECONDS / 0.05)):
        if link.wishes().stop:
            return {"outcome": "stopped", "reason": "Stopped"}
        pause.wait(0.05)
    raise TimeoutError("nobody asked to stop")


def tell_wishes(assignment: Mapping[str, Any], link: Any) -> dict[str, Any]:
    """Every rank tells the checkpoint wishes and cadences that it sees, until it is asked to stop."""
    rank, seen, every, pause = rank_of(link), 0, None, threading.Event()
    link.send({"kind": "waiting", "rank": rank, "pid": os.getpid()})
    for _ in range(round(PATIENCE_SECONDS / 0.05)):
        wishes = link.wishes()
        if wishes.checkpoint > seen:
            seen = wishes.checkpoint
            link.send({"kind": "saw", "rank": rank, "wish": seen})
        if wishes.checkpoint_every_seconds != every:
            every = wishes.checkpoint_every_seconds
            link.send({"kind": "cadence", "rank": rank, "seconds": every})
        if wishes.stop:
            return {"outcome": "stopped", "reason": "Stopped", "wish": seen}
        pause.wait(0.05)
    raise TimeoutError("nobody asked to stop")


def hang(assignment: Mapping[str, Any], link: Any) -> dict[str, Any]:
    """Every rank says that it waits, and hears nothing any more. (It touches its link now and then: an engine of threads
    can only end it there.)"""
    link.send({"kind": "waiting", "rank": rank_of(link), "pid": os.getpid()})
    pause = threading.Event()
    for _ in range(round(PATIENCE_SECONDS / 0.05)):
        link.wishes()
        pause.wait(0.05)
    raise TimeoutError("nobody ended it")


def lose_peer(assignment: Mapping[str, Any], link: Any) -> dict[str, Any]:
    """Rank 1 waits to be killed; rank 0 sees that as a broken connection at once, as a collective call would."""
    pause = threading.Event()
    victim = Path(assignment["run_dir"]) / "victim"
    if rank_of(link) == 1:
        victim.write_text(str(os.getpid()))
        return hang(assignment, link)
    link.send({"kind": "waiting", "rank": 0, "pid": os.getpid()})
    for _ in range(round(PATIENCE_SECONDS / 0.01)):
        if victim.exists() and victim.read_text() and not Path(f"/proc/{victim.read_text()}").exists():
            raise RuntimeError("[gloo] Connection closed by peer [127.0.0.1]:1234")
        pause.wait(0.01)
    raise TimeoutError("rank 1 lives for ever")


def show_environment(assignment: Mapping[str, Any], link: Any) -> dict[str, Any]:
    """Each rank tells what it finds around itself."""
    names = (
        "RANK",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "LOCAL_WORLD_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
        "OMP_NUM_THREADS",
        "COLOUR",
    )
    link.send(
        {
            "kind": "environment",
            "rank": rank_of(link),
            "variables": {name: os.environ.get(name) for name in names},
            "cwd": os.getcwd(),
            "path": sys.path[0],
        }
    )
    return dict(DONE)


def talk(assignment: Mapping[str, Any], link: Any) -> dict[str, Any]:
    """Each rank prints, warns through logging, and leaves an unfinished line."""
    import logging

    rank = rank_of(link)
    print(f"rank {rank} says hello")  # noqa: T201 - what it shows
    print("10%\r20%\r30%", file=sys.stderr)  # noqa: T201
    logging.getLogger("user").warning("careful on rank %d", rank)
    sys.stdout.write(f"no newline on rank {rank}")
    return dict(DONE)


def keep_running(assignment: Mapping[str, Any], link: Any) -> dict[str, Any]:
    """Every rank writes its pid into the run's folder and runs until it is asked to stop."""
    folder = Path(assignment["run_dir"])
    (folder / f"pid-{rank_of(link)}").write_text(json.dumps(os.getpid()))
    return wait_for_stop(assignment, link)


def hang_with_child(assignment: Mapping[str, Any], link: Any) -> dict[str, Any]:
    """Every rank starts a process of its own, as a data loader does, tells its number, and hangs."""
    child = subprocess.Popen([sys.executable, "-c", "import threading; threading.Event().wait(300)"])
    link.send({"kind": "child", "rank": rank_of(link), "pid": child.pid})
    return hang(assignment, link)
