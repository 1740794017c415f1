"""What holds for every test: a home of its own, no network, and nothing left behind.

A test must end with the threads and asyncio tasks it began with. Daemon threads are let be: Ray, torch and the standard
library's own pools start some that nobody can join. Only tasks of event loops that run in the test's own thread are seen.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import threading
import time
from asyncio import runners
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

THREAD_GRACE_SECONDS = 2.0

settings.register_profile(
    "house",
    max_examples=50,  # each run draws others; what needs more says so
    deadline=None,  # two shared cores: the time of one example says nothing about the code
    print_blob=True,  # a failure prints what reproduces it
    suppress_health_check=[HealthCheck.too_slow],  # the same reason as for the deadline
)
settings.load_profile("house")


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Started in the background of a shell: children would inherit that Ctrl-C is ignored, and some tests press it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What collecting imports (torch, transformers) stays: the collector need not walk through it again and again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(autouse=True, scope="session")
def _house_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests, and the processes they start, never touch the user's own home and never ask a model hub."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ORCHESTRATE_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("COLUMNS", "120")  # help texts wrap alike everywhere
        patch.setenv("NO_COLOR", "1")
        patch.delenv("PYTHONWARNINGS", raising=False)
        yield


def _running_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if not thread.daemon}


@pytest.fixture(autouse=True)
def _no_leaked_threads() -> Iterator[None]:
    """Fail a test that leaves a non-daemon thread running; one that is just ending gets a moment."""
    before = _running_threads()
    yield
    deadline = time.monotonic() + THREAD_GRACE_SECONDS
    for thread in _running_threads() - before:
        thread.join(max(0.0, deadline - time.monotonic()))
    leaked = sorted(thread.name for thread in _running_threads() - before)
    if leaked:
        pytest.fail(f"threads left running: {', '.join(leaked)}; stop and join them in the test", pytrace=False)


@pytest.fixture(autouse=True)
def _no_leaked_tasks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail a test whose `asyncio.run` had to cancel tasks that were still pending."""
    leaked: list[str] = []
    cancel_all_tasks = runners._cancel_all_tasks  # type: ignore[attr-defined]  # private, and the only place that knows
    owner = threading.current_thread()

    def note_and_cancel(loop: asyncio.AbstractEventLoop) -> None:
        if threading.current_thread() is owner:
            leaked.extend(repr(task.get_coro()) for task in asyncio.all_tasks(loop))
        cancel_all_tasks(loop)

    monkeypatch.setattr(runners, "_cancel_all_tasks", note_and_cancel)
    yield
    if leaked:
        pytest.fail(f"asyncio tasks left pending: {', '.join(sorted(leaked))}; await or cancel them", pytrace=False)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout's root folder."""
    return Path(__file__).resolve().parent.parent
