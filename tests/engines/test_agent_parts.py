"""Parts of the agent, without processes of their own where that can be."""

from __future__ import annotations

import os
import random
import selectors
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from orchestrator.domain.clock import ManualClock, SystemClock
from orchestrator.platforms.engines.native import lifeline
from orchestrator.platforms.engines.native.agent import Agent, AgentConfig, coordinator_of
from orchestrator.platforms.engines.native.births import Upbringing
from orchestrator.platforms.engines.native.messages import HandedOver, write
from orchestrator.platforms.engines.native.shards import ShardStore
from orchestrator.platforms.engines.native.uplink import Uplink
from orchestrator.platforms.engines.native.workers import Outbox
from orchestrator.platforms.notices import FakeSource, Watcher
from tests.engines.agent_harness import TOKEN, Harness


def events(*numbers: int) -> list[dict[str, Any]]:
    return [{"kind": "count", "number": number} for number in numbers]


def numbered(batch: tuple[int, list[Mapping[str, Any]]] | None) -> dict[int, Any]:
    assert batch is not None
    return dict(enumerate(batch[1], batch[0]))


def test_events_keep_their_numbers_over_a_lost_connection() -> None:
    """What was not heard is sent again under the same numbers; what was heard is not."""
    outbox = Outbox()
    for event in events(0, 1, 2):
        outbox.add(event)
    assert outbox.batch() == (0, events(0, 1, 2))
    assert outbox.batch() is None
    outbox.heard(2)
    outbox.add(events(3)[0])
    assert outbox.batch() == (3, events(3))
    outbox.rewind()
    assert outbox.batch() == (2, events(2, 3))


def test_events_that_nobody_takes_are_let_go_and_counted() -> None:
    """Beyond the limit the oldest go; one line tells how many in all, and the numbers of those that stay do not change."""
    outbox = Outbox(most=20)
    for event in events(*range(100)):
        outbox.add(event)
    kept = numbered(outbox.batch())
    assert len(kept) <= 20
    first = min(kept)
    assert kept[first]["kind"] == "log"
    assert kept[first]["lines"] == [f"({first + 1} events were dropped here: nobody took them for too long)"]
    assert all(event["number"] == number for number, event in kept.items() if number != first)
    assert max(kept) == 99


def test_events_travel_in_messages_of_bounded_size() -> None:
    """Many large events are cut into messages of about a mebibyte; a larger one goes alone; none is lost."""
    outbox = Outbox()
    for number, size in enumerate((400_000, 400_000, 400_000, 3_000_000, 10, 10)):
        outbox.add({"kind": "log", "number": number, "lines": ["x" * size]})
    batches = []
    while (batch := outbox.batch()) is not None:
        batches.append([event["number"] for event in batch[1]])
    assert batches == [[0, 1], [2], [3], [4, 5]]


def test_the_words_for_an_end() -> None:
    """A signal is named, a status is given."""
    assert lifeline.exit_text(3) == "exited with status 3"
    assert lifeline.exit_text(-11) == "was killed by SIGSEGV"
    assert lifeline.exit_text(-63) == "was killed by signal 63"


def test_kills_for_want_of_memory_are_counted_in_the_own_cgroup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the memory cgroup tells of kills, its counter is the one that is read."""
    (tmp_path / "memory.events").write_text("low 0\noom 4\noom_kill 2\n")
    monkeypatch.setattr(lifeline, "CGROUP", tmp_path)
    kills = lifeline.memory_kills()
    assert kills() == 2
    (tmp_path / "memory.events").write_text("low 0\noom 5\noom_kill 3\n")
    assert kills() == 3


def test_a_worker_begins_with_the_jobs_variables_over_the_nodes() -> None:
    """Threads are set before anything is imported; the job has the last word; numpy alone keeps what the node says."""
    environment = Upbringing("a", 3, {"COLOUR": "red"}).environment({"COLOUR": "blue", "OPENBLAS_NUM_THREADS": "2"})
    assert environment["OMP_NUM_THREADS"] == "3"
    assert environment["COLOUR"] == "red"
    assert environment["OPENBLAS_NUM_THREADS"] == "2"


def test_the_coordinators_address_is_read_anew(tmp_path: Path) -> None:
    """The file's word goes before the configured one, as soon as it can be read."""
    file = tmp_path / "coordinator"
    config = AgentConfig("a", "n", "127.0.0.1", 1, "t", ("127.0.0.1", 1), str(file))
    address = coordinator_of(config)
    assert address() == ("127.0.0.1", 1)
    file.write_text("10.0.0.7 4711\n")
    assert address() == ("10.0.0.7", 4711)
    file.write_text("10.0.0.7")
    assert address() == ("127.0.0.1", 1)


def test_tries_to_connect_grow_apart() -> None:
    """Nobody listens: the pauses grow to two seconds and no further, and the time alone is counted."""
    clock = ManualClock()
    selector = selectors.DefaultSelector()
    asked: list[int] = []

    def address() -> None:
        asked.append(clock.monotonic_ns())

    uplink = Uplink(selector, address, lambda: None, lambda message: None, clock, random.Random(7))
    for _ in range(3000):
        uplink.tick()
        clock.advance(0.01)
    pauses = [later - earlier for earlier, later in pairwise(asked)]
    assert pauses[0] < 0.1e9
    assert 1.3e9 < pauses[-1] < 2.7e9
    assert max(pauses) < 2.7e9
    assert uplink.alone_ns() == 30_000_000_000
    selector.close()


def test_a_coordinator_that_closes_at_once_has_not_been_reached() -> None:
    """With a wrong token the connection ends without a word: the time alone goes on."""
    clock = ManualClock()
    selector = selectors.DefaultSelector()
    connected: list[bool] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        uplink = Uplink(
            selector,
            listener.getsockname,
            lambda: connected.append(True),
            lambda message: None,
            clock,
            random.Random(7),
        )
        clock.advance(5.0)
        uplink.tick()
        listener.accept()[0].close()
        for _ in range(100):
            for key, mask in selector.select(0.1):
                key.data(mask)
            if connected and not uplink.connected:
                break
        assert connected == [True]
        assert not uplink.connected
        assert uplink.alone_ns() == 5_000_000_000
    uplink.finish(1.0)
    selector.close()


@pytest.mark.integration
@pytest.mark.timeout(90)
def test_an_agent_lives_in_a_thread_too_and_tells_of_a_kill_for_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an actor: the agent runs in a thread of a larger process. A worker killed while the kernel's counter of kills
    for want of memory grows was out of memory; one killed otherwise was not. `stop` ends all."""
    kills = [5]
    monkeypatch.setattr(lifeline, "memory_kills", lambda: lambda: kills[0])
    harness = Harness()
    harness.listen()
    config = AgentConfig("a", "n", "127.0.0.1", 1, TOKEN)
    environ = {**os.environ, "PYTHONPATH": os.getcwd()}
    store = ShardStore("127.0.0.1", TOKEN, SystemClock())
    agent = Agent(config, lambda: harness.address, store, environ=environ)
    statuses: list[int] = []
    thread = threading.Thread(target=lambda: statuses.append(agent.run()))
    thread.start()
    try:
        harness.until_connected()
        for name, kills_then, reason in (("a", 5, "WorkerLost"), ("b", 6, "OutOfMemory")):
            harness.run(name, "step")
            pid = harness.until_state(name, "RUNNING")["pid"]
            monkeypatch.setattr(agent, "_next_look_ns", 2**63)  # what it would look up in between is what came before
            kills[0] = kills_then
            os.kill(pid, signal.SIGKILL)
            assert harness.until_left(name)["reason"] == reason
    finally:
        agent.stop()
        thread.join(30)
        harness.close()
    assert statuses == [0]


@pytest.mark.timeout(60)
def test_whoever_warned_hears_that_the_node_is_empty() -> None:
    """The coordinator's word that the work has left the node reaches the sources of notices, which may hasten the end."""
    harness = Harness()
    harness.listen()
    source = FakeSource()

    def watch(tell: Callable[[Mapping[str, Any]], None]) -> Watcher:
        return Watcher([source], lambda change: tell(change.to_document()), SystemClock(), "n")

    config = AgentConfig("a", "n", "127.0.0.1", 1, TOKEN)
    store = ShardStore("127.0.0.1", TOKEN, SystemClock())
    agent = Agent(config, lambda: harness.address, store, environ=dict(os.environ), watch=watch)
    thread = threading.Thread(target=agent.run)
    thread.start()
    try:
        harness.until_connected()
        harness.say(write(HandedOver("n")))
        harness.until(lambda: source.emptied)
    finally:
        agent.stop()
        thread.join(30)
        harness.close()
    assert source.emptied == ["n"]


def test_time_without_a_processor_is_counted() -> None:
    """Of more processes that turn in circles than there are processors, each waits; of one that is gone nothing is known."""

    count = (os.cpu_count() or 1) + 1
    turning = [subprocess.Popen(["/bin/sh", "-c", "while :; do :; done"]) for _ in range(count)]
    try:
        deadline = SystemClock().monotonic_ns() + 20_000_000_000
        while not any(lifeline.waited_ns(each.pid) > 50_000_000 for each in turning):
            assert SystemClock().monotonic_ns() < deadline
            os.sched_yield()
    finally:
        for each in turning:
            each.kill()
            each.wait()
    assert lifeline.waited_ns(turning[0].pid) == 0
