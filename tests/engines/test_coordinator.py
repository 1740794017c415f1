"""The coordinator with agents that speak its protocol over real sockets, and a store that is a process without torch."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.domain.clock import SystemClock
from orchestrator.domain.notices import Notice, NoticeKind
from orchestrator.platforms.engines.base import Cadence, Outcome, RunRequest, WishBoard
from orchestrator.platforms.engines.native import NativeEngine, store_process
from orchestrator.platforms.engines.native.messages import RUNNING, Address, Frames, encode
from orchestrator.platforms.engines.native.terms import MILLISECOND, SECOND, Judgements, Limits, Terms
from tests.engines.fake_agents import PATIENCE_SECONDS, FakeAgent

pytestmark = [pytest.mark.integration, pytest.mark.timeout(60)]

STORE = (sys.executable, "-c", "import sys; print(4711, flush=True); sys.stdin.read()")
LIMITS = Limits(gather_ns=SECOND, warm_ns=200 * MILLISECOND, grace_ns=200 * MILLISECOND, adopt_ns=5 * SECOND)
REQUEST = RunRequest(
    uid="uid",
    namespace="default",
    name="job",
    attempt=3,
    workers=2,
    cpus_per_worker=1,
    gpus_per_worker=0,
    memory_bytes_per_worker=None,
    worker_loop="module:loop",
    assignment={"threads": 2, "steps": 7},
    env={"COLOUR": "blue"},
    min_workers=1,
    elastic=True,
)


class Attempt:
    """An attempt in a thread of its own; also its launcher, which starts nothing."""

    def __init__(self, request: RunRequest = REQUEST, **engine: Any) -> None:
        self.wishes = WishBoard(request.cadence, request.size)
        self.events: list[Mapping[str, Any]] = []
        self.wanted: list[int] = []
        self.dismissed: list[str] = []
        self.stopped = False
        self.address: Address = ("", 0)
        self.token = ""
        self.agents: list[FakeAgent] = []
        self.outcome: Outcome | None = None
        self._changed = threading.Condition()
        options: dict[str, Any] = {"limits": LIMITS, "judge": lambda terms: Judgements(), "store_command": STORE}
        self.engine = NativeEngine(lambda request: self, SystemClock(), environ={}, **{**options, **engine})
        self._thread = threading.Thread(target=self._run, args=(request,), daemon=True)
        self._thread.start()

    def _run(self, request: RunRequest) -> None:
        outcome = self.engine.run(request, self._heard, self.wishes)
        with self._changed:
            self.outcome = outcome
            self._changed.notify_all()

    def _heard(self, events: Any) -> None:
        with self._changed:
            self.events.extend(events)
            self._changed.notify_all()

    # the launcher

    def start(self, address: Address, token: str) -> None:
        with self._changed:
            self.address, self.token = address, token
            self._changed.notify_all()

    def want(self, slots: int) -> None:
        self.wanted.append(slots)

    def dismiss(self, agent: str, why: str) -> None:
        self.dismissed.append(agent)

    def stop(self) -> None:
        self.stopped = True

    # the test

    def agent(self, name: str, **more: Any) -> FakeAgent:
        self.until(lambda: bool(self.token))
        self.agents.append(FakeAgent(self.address, self.token, name, **more))
        return self.agents[-1]

    def until(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, PATIENCE_SECONDS), f"{self.events} {self.outcome}"

    def of_kind(self, kind: str) -> list[Mapping[str, Any]]:
        return [event for event in self.events if event["kind"] == kind]

    def end(self) -> Outcome:
        self.until(lambda: self.outcome is not None)
        assert self.outcome is not None
        return self.outcome

    def close(self) -> None:
        self.engine.kill()
        self._thread.join(PATIENCE_SECONDS)
        assert not self._thread.is_alive()
        for agent in self.agents:
            agent.close()
            agent.join()


@pytest.fixture
def begin() -> Iterator[Callable[..., Attempt]]:
    begun: list[Attempt] = []

    def attempt(*args: Any, **more: Any) -> Attempt:
        begun.append(Attempt(*args, **more))
        return begun[-1]

    yield attempt
    for one in begun:
        one.close()


def pair(attempt: Attempt) -> tuple[FakeAgent, FakeAgent]:
    """Two agents with a running member each."""
    a, b = attempt.agent("a"), attempt.agent("b")
    for agent in (a, b):
        agent.until(lambda agent=agent: bool(agent.running(1)))  # type: ignore[misc]
    attempt.until(lambda: len(attempt.of_kind("world")) == 1)
    return a, b


def finish(*agents: FakeAgent) -> None:
    for agent in agents:
        for worker in agent.running():
            agent.leave(worker, result={"reason": "Completed", "rank": agent.workers[worker]["rank"]})


def test_a_gang_runs_to_its_end_and_leaves_nothing(begin: Callable[..., Attempt]) -> None:
    """Workers get all they need, rank 0's result is the outcome, and agents and launcher are told that it is over."""
    threads = set(threading.enumerate())
    attempt = begin()
    a, b = pair(attempt)
    spawn = next(message for message in a.got if message["kind"] == "spawn")
    assert (spawn["loop"], spawn["threads"], spawn["env"]) == ("module:loop", 2, {"COLOUR": "blue"})
    assert spawn["assignment"] == {"threads": 2, "steps": 7}
    plans = sorted([*a.plans(), *b.plans()], key=lambda plan: plan["rank"])
    assert [(plan["rank"], plan["world_size"], plan["attempt"]) for plan in plans] == [(0, 2, 3), (1, 2, 3)]
    assert plans[0]["store"] == ["127.0.0.1", 4711]
    assert [plan["source"] for plan in plans] == [None, None]
    (world,) = attempt.of_kind("world")
    assert (world["generation"], world["world_size"]) == (1, 2)
    assert {worker["node"] for worker in world["workers"]} == {"node-a", "node-b"}
    finish(a, b)
    outcome = attempt.end()
    assert outcome.reason == "Completed"
    assert outcome.result == {"reason": "Completed", "rank": 0}
    assert attempt.stopped
    assert attempt.wanted == [2]
    for agent in (a, b):
        assert agent.got[-1]["kind"] == "bye"
        agent.join()
    attempt.close()
    assert set(threading.enumerate()) <= threads


def test_a_lost_agent_is_another_world_from_memory(begin: Callable[..., Attempt]) -> None:
    """An agent's end of connection makes a world of those that stay, with the source that they hold."""
    attempt = begin()
    a, b = pair(attempt)
    for rank, own in ((0, True), (1, False)):
        a.shards.append({"generation": 1, "world_size": 2, "rank": rank, "step": 9, "bytes": 10, "own": own})
    b.vanish()
    a.until(lambda: bool(a.running(2)))
    attempt.until(lambda: len(attempt.of_kind("world")) == 2)
    plan = a.plans()[-1]
    assert plan["source"] == {
        "generation": 1,
        "step": 9,
        "world_size": 2,
        "shards": {"0": [["a", 1]], "1": [["a", 1]]},
    }
    (lost,) = attempt.of_kind("world_lost")
    assert (lost["generation"], lost["reason"], lost["target"]) == (1, "WorkerLost", 2)
    assert 0 < lost["began_ns"] <= lost["at_ns"]
    slots = [(event["slot"], event["state"]) for event in attempt.of_kind("slot")]
    assert ("b/0", "released") in slots
    finish(a)
    assert attempt.end().reason == "Completed"


def test_events_come_once_and_in_order_over_broken_connections(begin: Callable[..., Attempt]) -> None:
    """What an agent repeats after it came back is not heard twice, and what it had not told is heard."""
    attempt = begin(replace(REQUEST, workers=1))
    a = attempt.agent("a")
    a.until(lambda: bool(a.running()))
    (worker,) = a.running()
    told = [{"kind": "count", "rank": 0, "number": number} for number in range(6)]
    a.say({"kind": "events", "worker": worker, "first": 0, "events": told[:4]})
    a.until(lambda: a.heard.get(worker) == 4)
    a.reconnect(attempt.address)
    a.say({"kind": "events", "worker": worker, "first": 2, "events": told[2:]})
    a.until(lambda: a.heard.get(worker) == 6)
    attempt.until(lambda: len(attempt.of_kind("count")) >= 6)
    assert [event["number"] for event in attempt.of_kind("count")] == [0, 1, 2, 3, 4, 5]


def test_wishes_reach_agents_that_are_there_and_that_come(begin: Callable[..., Attempt]) -> None:
    """Saves, cadence and the stop are passed on; a new agent hears them at once."""
    attempt = begin(replace(REQUEST, cadence=Cadence(1, 60.0)))
    a, b = pair(attempt)
    attempt.wishes.wish_checkpoint()
    a.until(lambda: any(wish["checkpoint"] == 1 for wish in a.wishes))
    attempt.wishes.wish_stop()
    for agent in (a, b):
        agent.until(lambda agent=agent: any(wish["stop"] for wish in agent.wishes))  # type: ignore[misc]
    c = attempt.agent("c")
    c.until(lambda: bool(c.wishes))
    expected = {"kind": "wishes", "checkpoint": 1, "stop": True, "checkpoint_every_seconds": 60.0}
    assert c.wishes[0] == expected
    finish(a, b)
    attempt.end()


def test_a_coordinator_that_takes_over_counts_wishes_on(begin: Callable[..., Attempt]) -> None:
    """Agents that an earlier one told of three saves hear of three and not of none, so that nothing is saved again; the next
    wish is the fourth. An agent that comes back adds nothing."""
    attempt = begin()
    a, b = attempt.agent("a", checkpoint=3), attempt.agent("b", checkpoint=2)
    b.until(lambda: bool(b.wishes))
    a.until(lambda: bool(a.wishes))
    attempt.wishes.wish_checkpoint()
    for agent in (a, b):
        agent.until(lambda agent=agent: agent.wishes[-1]["checkpoint"] == 4)  # type: ignore[misc]
    assert [wish["checkpoint"] for wish in a.wishes if wish["checkpoint"] not in (3, 4)] == []
    heard, b.checkpoint = len(b.wishes), 4
    b.reconnect(attempt.address)
    b.until(lambda: len(b.wishes) > heard)
    assert b.wishes[-1]["checkpoint"] == 4


def test_a_wished_size_takes_effect(begin: Callable[..., Attempt]) -> None:
    """The members of a world that is to shrink are asked to regroup, and leave for one of the wished size."""
    attempt = begin()
    a, b = pair(attempt)
    attempt.wishes.wish_size(1)
    for agent in (a, b):
        agent.until(lambda agent=agent: any(m["kind"] == "regroup" for m in agent.got))  # type: ignore[misc]
        for worker in agent.running():
            agent.leave(worker, "Regrouped", result={"reason": "Regrouped"})
    attempt.until(lambda: len(attempt.of_kind("world")) == 2)
    assert attempt.of_kind("world")[-1]["world_size"] == 1
    assert attempt.of_kind("world_lost")[-1]["reason"] == "Resized"
    assert attempt.wanted == [2, 1]


def test_strangers_are_not_let_in(begin: Callable[..., Attempt]) -> None:
    """A wrong token, another first message, and what is no frame at all close the connection; the gang goes on."""
    attempt = begin()
    a, b = pair(attempt)
    hello = {"kind": "hello", "token": "wrong", "agent": "a", "node": "n", "host": "h", "address": ["h", 1], "slots": 1}
    for first in (encode(hello), encode({"kind": "beat", "workers": []}), b"\xff" * 64, b"GET / HTTP/1.1\r\n\r\n"):
        with socket.create_connection(attempt.address) as stranger:
            stranger.settimeout(PATIENCE_SECONDS)
            stranger.sendall(first)
            assert stranger.recv(1) == b""
    finish(a, b)
    assert attempt.end().reason == "Completed"
    assert not attempt.of_kind("world_lost")


def test_an_agent_that_talks_nonsense_is_lost(begin: Callable[..., Attempt]) -> None:
    """A message that no agent sends ends its connection, as a loss."""
    attempt = begin()
    _, b = pair(attempt)
    b.say({"kind": "poem"})
    attempt.until(lambda: len(attempt.of_kind("world_lost")) == 1)
    assert "poem" in attempt.of_kind("world_lost")[0]["message"]


def test_kill_ends_the_gang(begin: Callable[..., Attempt]) -> None:
    """`kill` ends the members and returns when the agents are gone."""
    attempt = begin()
    a, b = pair(attempt)
    attempt.engine.kill()
    assert attempt.end() == Outcome("WorkerLost", "the gang was killed")
    assert any(message["kind"] == "abort" for message in a.got)
    assert not a.running()
    assert not b.running()


def test_members_that_wait_for_the_store_end_with_their_world(begin: Callable[..., Attempt]) -> None:
    """A gang that is killed before its plans could be told ends its workers by name, and none is told its place later."""
    silent = (sys.executable, "-c", "import sys; sys.stdin.read()")
    attempt = begin(store_command=silent)
    a, b = attempt.agent("a"), attempt.agent("b")
    for agent in (a, b):
        agent.until(lambda agent=agent: any(m["kind"] == "ask_inventory" for m in agent.got))  # type: ignore[misc]
        agent.until(lambda agent=agent: bool(agent.workers))  # type: ignore[misc]
    attempt.until(lambda: len(attempt.of_kind("world")) == 1)
    attempt.engine.kill()
    attempt.end()
    for agent in (a, b):
        kinds = [message["kind"] for message in agent.got]
        assert "kill" in kinds
        assert "plan" not in kinds
        assert not agent.workers


def test_a_new_driver_takes_a_running_world_over(begin: Callable[..., Attempt]) -> None:
    """Agents that come with members of a whole world are adopted: no plan, no kill, and their result is the outcome."""
    attempt = begin(adopt=True, token="the job's own")
    agents = []
    for rank, name in enumerate("ab"):
        member = {"worker": f"old-{rank}", "state": RUNNING, "generation": 5, "rank": rank, "world_size": 2, "step": 40}
        agents.append(attempt.agent(name, members=(member,)))
    a, b = agents
    a.say({"kind": "events", "worker": "old-0", "first": 17, "events": [{"kind": "step", "rank": 0, "step": 41}]})
    attempt.until(lambda: len(attempt.of_kind("step")) == 1)
    assert attempt.token == "the job's own"
    a.until(lambda: a.heard.get("old-0") == 18)
    a.until(lambda: any(message["kind"] == "spawn" for message in a.got))
    finish(a, b)
    outcome = attempt.end()
    assert outcome.result == {"reason": "Completed", "rank": 0}
    assert not [m for agent in agents for m in agent.got if m["kind"] in ("plan", "abort", "kill")]
    assert not attempt.of_kind("world_lost")


def test_a_notice_is_told_once_and_its_node_is_left(begin: Callable[..., Attempt]) -> None:
    """A notice reaches the listener, also when it is repeated once only, and the world leaves its node."""
    attempt = begin()
    a, b = pair(attempt)
    now_ns = SystemClock().now_ns()
    notice = Notice("aws", "node-b", NoticeKind.INTERRUPTION, now_ns, now_ns + 3 * SECOND).to_document()
    for _ in range(2):
        b.say({"kind": "notice", "notice": notice})
    a.until(lambda: any(message["kind"] == "regroup" for message in a.got))
    for agent in (a, b):
        for worker in agent.running():
            agent.leave(worker, "Regrouped")
    a.until(lambda: bool(a.running(2)))
    attempt.until(lambda: len(attempt.of_kind("world")) == 2)
    assert [event["node"] for event in attempt.of_kind("notice")] == ["node-b"]
    assert [worker["node"] for worker in attempt.of_kind("world")[-1]["workers"]] == ["node-a"]
    assert attempt.of_kind("world_lost")[-1]["reason"] == "Notice"


def test_a_store_that_dies_is_replaced_and_plans_wait_for_it(
    begin: Callable[..., Attempt], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first store ends before anybody was planned; members are told the second."""
    monkeypatch.setattr(store_process, "AGAIN_SECONDS", 0.05)
    mark = tmp_path / "mark"
    script = (
        "import pathlib, sys\n"
        f"mark = pathlib.Path({str(mark)!r})\n"
        "if not mark.exists():\n"
        "    mark.touch()\n"
        "    sys.exit(1)\n"
        "print(4712, flush=True)\n"
        "sys.stdin.read()\n"
    )
    attempt = begin(store_command=(sys.executable, "-c", script))
    a, b = pair(attempt)
    assert a.plans()[0]["store"][1] == b.plans()[0]["store"][1] == 4712
    finish(a, b)
    assert attempt.end().reason == "Completed"


def test_a_store_that_never_starts_ends_the_attempt(
    begin: Callable[..., Attempt], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After some tries in vain the attempt is over, as EngineLost."""
    monkeypatch.setattr(store_process, "AGAIN_SECONDS", 0.01)
    attempt = begin(store_command=(sys.executable, "-S", "-c", "raise SystemExit(1)"))
    outcome = attempt.end()
    assert outcome.reason == "EngineLost"
    assert "store" in outcome.message


def test_a_launcher_that_fails_ends_the_attempt(begin: Callable[..., Attempt], monkeypatch: pytest.MonkeyPatch) -> None:
    """What it raises is the outcome's message, and it is stopped all the same."""

    def fail(self: Attempt, address: Address, token: str) -> None:
        raise OSError("no more processes")

    monkeypatch.setattr(Attempt, "start", fail)
    attempt = begin()
    outcome = attempt.end()
    assert (outcome.reason, outcome.message) == ("EngineLost", "OSError: no more processes")
    assert attempt.stopped


def test_frames_are_cut_where_they_end() -> None:
    """Messages come out whole and in order, however the bytes are cut."""
    messages = [{"kind": "beat", "workers": [], "text": "ü" * number} for number in range(5)]
    data = b"".join(encode(message) for message in messages)
    for size in (1, 3, 7, len(data)):
        frames = Frames()
        out = [m for start in range(0, len(data), size) for m in frames.feed(data[start : start + size])]
        assert out == messages


def test_terms_of_a_request() -> None:
    """A request that is not elastic has one size; an elastic one those that are allowed."""
    assert Terms.of(replace(REQUEST, elastic=False)).sizes == (2,)
    assert Terms.of(replace(REQUEST, workers=8, min_workers=2, allowed=(1, 2, 4, 8))).sizes == (2, 4, 8)
    assert Terms.of(replace(REQUEST, workers=4, min_workers=None, gpus_per_worker=2)).ranks_per_worker == 2
