"""Worker loops of the agent's tests. Without torch; each shows one thing."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import Any

PATIENCE_SECONDS = 60.0
DONE = {"outcome": "succeeded", "reason": "Completed"}


def count(assignment: Mapping[str, Any], link: Any) -> dict[str, Any]:
    """A hundred numbered events and a result."""
    for number in range(100):
        link.send({"kind": "count", "number": number})
    print("counted")  # noqa: T201 - to be heard
    return {**DONE, "rank": link.rank}


def step(assignment: Mapping[str, Any], link: Any) -> dict[str, Any]:
    """A step every 20 ms until it is asked to stop or to regroup."""
    pause = threading.Event()
    for number in range(round(PATIENCE_SECONDS / 0.02)):
        link.send({"kind": "step", "step": number})
        wishes = link.wishes()
        if wishes.regroup:
            return {"outcome": "regrouped", "reason": "Regrouped", "step": number}
        if wishes.stop:
            return {"outcome": "stopped", "reason": "Stopped", "wish": wishes.checkpoint}
        pause.wait(0.02)
    raise TimeoutError("nobody asked to stop")


def surroundings(assignment: Mapping[str, Any], link: Any) -> dict[str, Any]:
    """What it finds around itself."""
    names = (
        *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS"),
        *("TORCHELASTIC_USE_AGENT_STORE", "TORCHELASTIC_RESTART_COUNT", "COLOUR"),
    )
    return {
        **DONE,
        "variables": {name: os.environ.get(name) for name in names},
        "cwd": os.getcwd(),
        "path": sys.path[0],
    }


def fail(assignment: Mapping[str, Any], link: Any) -> dict[str, Any]:
    """An error of the user's code."""
    raise ValueError("the sky fell")


def lose_peer(assignment: Mapping[str, Any], link: Any) -> dict[str, Any]:
    """As a collective call ends when its peer died."""
    raise RuntimeError("[gloo] Connection closed by peer [127.0.0.1]:1234")


def return_nothing(assignment: Mapping[str, Any], link: Any) -> None:
    """No mapping."""


def leave_early(assignment: Mapping[str, Any], link: Any) -> None:
    """User code that ends the whole process at once."""
    os._exit(17)


def crash(assignment: Mapping[str, Any], link: Any) -> None:
    """A crash in native code."""
    link.send({"kind": "before"})
    link.close()
    ctypes.string_at(0)


def hang_in_c(assignment: Mapping[str, Any], link: Any) -> None:
    """Stuck in a C call in the main thread, deaf to every signal that can be blocked."""
    link.send({"kind": "waiting", "pid": os.getpid()})
    link.close()
    signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.valid_signals()))
    ctypes.PyDLL(None).sleep(
        round(PATIENCE_SECONDS)
    )  # a PyDLL call keeps the interpreter's lock: no Python thread runs


def with_child(assignment: Mapping[str, Any], link: Any) -> dict[str, Any]:
    """Starts a process of its own, as a data loader does, and steps on."""
    child = subprocess.Popen([sys.executable, "-c", "import threading; threading.Event().wait(300)"])
    link.send({"kind": "child", "pid": child.pid})
    return step(assignment, link)


def publish(assignment: Mapping[str, Any], link: Any) -> dict[str, Any]:
    """Keeps a state in the agent's memory, and steps on."""
    layout = [Fragment("w", "fp32", "float32", 0, 4, 0)]
    link.memory.open(layout, 16)
    link.memory.buffer(7)[:] = bytes(range(16))
    link.memory.publish(7, {"step": 7})
    link.send({"kind": "published"})
    return step(assignment, link)


class Fragment:
    def __init__(self, name: str, kind: str, dtype: str, start: int, end: int, offset: int) -> None:
        self.name, self.kind, self.dtype = name, kind, dtype
        self.start, self.end, self.offset = start, end, offset


def follow(assignment: Mapping[str, Any], link: Any) -> dict[str, Any]:
    """As a rank that tells its steps to nobody but its agent."""
    link.progress(11)
    link.send({"kind": "running", "step": 12})
    return {**step_until_stopped(link), "rank": link.rank}


def step_until_stopped(link: Any) -> dict[str, Any]:
    """Wait for the wish to stop, without a word."""
    pause = threading.Event()
    for _ in range(round(PATIENCE_SECONDS / 0.02)):
        if link.wishes().stop:
            return {"outcome": "stopped", "reason": "Stopped"}
        pause.wait(0.02)
    raise TimeoutError("nobody asked to stop")


def tell_the_unsayable(assignment: Mapping[str, Any], link: Any) -> dict[str, Any]:
    """Events that JSON does not know, between two that it does."""
    circle: dict[str, Any] = {"kind": "circle"}
    circle["self"] = circle
    for event in ({"kind": "before"}, circle, {"kind": "text", "value": object}, {"kind": "after"}):
        link.send(event)
    return dict(DONE)
