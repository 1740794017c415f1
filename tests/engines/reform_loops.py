"""Worker loops whose processes go on from one world to the next."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.training import worker
from tests.cluster import loops


def preload() -> None:
    """The template of the tests imports nothing more."""


def warm(assignment: Mapping[str, Any], env: Mapping[str, str]) -> Any:
    return worker.warm(assignment, env) if "spec" in assignment else None


def recycle(assignment: Mapping[str, Any], value: Any) -> Any:
    """Not fit where the test wants it so; a second thread is what the real self-test finds."""
    unfit = Path(assignment.get("unfit", "/nowhere"))
    try:
        unfit.rename(unfit.with_suffix(".injected"))  # one of those that come back at the same time, and no other
    except FileNotFoundError:
        return None if value is None else worker.recycle(assignment, value)
    threading.Thread(target=threading.Event().wait, name="left over", daemon=True).start()
    if value is None:
        raise RuntimeError("not fit")
    return worker.recycle(assignment, value)


def lockstep(assignment: Mapping[str, Any], link: Any, value: None) -> dict[str, Any]:
    return loops.lockstep(assignment, link)


def train(assignment: Mapping[str, Any], link: Any, value: Any) -> Any:
    """The trainer, with a pause of 50 ms a step; it says which process is which rank."""
    link.send({"kind": "begun", "pid": os.getpid(), "rank": link.rank, "generation": link.plan["generation"]})
    send, pause = link.send, threading.Event()

    def slowly(event: Mapping[str, Any]) -> None:
        send(event)
        if event["kind"] == "step":
            pause.wait(0.05)

    link.send = slowly
    try:
        return worker.run(assignment, link, value)
    finally:
        link.send = send
