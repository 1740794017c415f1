"""The agent of a node and its workers, driven by a coordinator that only says what a test wants. Real processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestrator.platforms.engines.native.priority import BEHIND, may_return_to
from orchestrator.platforms.engines.native.processes import LocalAgents
from tests.engines.agent_harness import Harness, gone, one_agent, until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(90)]

Pair = tuple[Harness, LocalAgents]


@pytest.fixture
def pair() -> Iterator[Pair]:
    with one_agent() as pair:
        yield pair


def node_pid(agents: LocalAgents) -> int:
    return next(iter(agents.nodes.values())).pid


def template_of(agents: LocalAgents) -> int:
    (template,) = psutil.Process(node_pid(agents)).children()
    return template.pid


# --- a worker's life -------------------------------------------------------------------------------------------------


def test_an_agent_says_who_it_is(pair: Pair) -> None:
    """The first message has the token, node, host, slots and the address of the memory server; then come beats."""
    harness, _ = pair
    hello = harness.connections[0].hello
    assert (hello["token"], hello["agent"], hello["node"]) == ("a token of tests", "agent-node-0", "node-0")
    assert (hello["host"], hello["slots"], hello["members"]) == ("127.0.0.1", 2, [])
    assert hello["address"][0] == "127.0.0.1"
    harness.until(lambda: len(harness.of_kind("beat")) > 2)


def test_a_worker_warms_up_waits_runs_and_leaves(pair: Pair) -> None:
    """All states are told; what it returns and every event, each under its own number and with its world's, come before its
    end."""
    harness, _ = pair
    harness.spawn("w", "count")
    harness.until_state("w", "READY")
    harness.plan("w", generation=4, rank=1, world_size=2)
    left = harness.until_left("w")
    assert (left["reason"], left["generation"], left["collateral"]) == ("Completed", 4, False)
    assert left["result"] == {"outcome": "succeeded", "reason": "Completed", "rank": 1}
    events = harness.events["w"]
    assert sorted(events) == list(range(101))
    assert [e["number"] for _, e in sorted(events.items()) if e["kind"] == "count"] == list(range(100))
    assert {e["generation"] for e in events.values()} == {4}
    assert harness.lines("w") == ["counted"]
    states = [item["state"] for beat in harness.of_kind("beat") for item in beat["workers"]]
    assert states[0] == "WARMING"
    assert "READY" in states
    assert "FORMING" in states
    assert harness.messages.index(left) > max(i for i, m in enumerate(harness.messages) if m["kind"] == "events")


def test_workers_are_copies_of_one_template(pair: Pair, tmp_path: Path) -> None:
    """What the loop's module imports is imported once; each worker warms up itself, with the assignment and variables of
    the job, and has the template as its parent."""
    harness, agents = pair
    for name in ("a", "b"):
        harness.spawn(name, "tests.engines.warm_loops:run", env={"COLOUR": "blue"})
    for name in ("a", "b"):
        harness.until_state(name, "READY")
    template = template_of(agents)
    for rank, name in enumerate(("a", "b")):
        harness.plan(name, rank=rank, world_size=2)
    results = [harness.until_left(name)["result"] for name in ("a", "b")]
    assert [result["preloaded_in"] for result in results] == [[template], [template]]
    assert [result["parent"] for result in results] == [template, template]
    for result in results:
        assert (result["warmed"]["pid"], result["warmed"]["colour"]) == (result["pid"], "blue")
        assert result["warmed"]["niceness"] == result["niceness"]  # nobody trains yet
    assert harness.lines("a") == ["warming"]


def test_a_standby_warms_up_behind_those_that_train(pair: Pair) -> None:
    """While others have a place, a standby's warm-up stands back, if it may step forward again; its loop never does."""
    harness, _ = pair
    harness.run("a", "step")
    harness.until_state("a", "RUNNING")
    harness.run("b", "tests.engines.warm_loops:run", generation=2)
    result = harness.until_left("b")["result"]
    before = os.nice(0)
    assert result["niceness"] == before
    assert result["warmed"]["niceness"] == (min(19, before + BEHIND) if may_return_to(before) else before)


def test_a_worker_finds_its_place_in_its_environment(pair: Pair, tmp_path: Path) -> None:
    """The plan's place and store, the job's variables, threads and working folder are all there."""
    harness, _ = pair
    harness.spawn("w", "surroundings", env={"COLOUR": "red"}, threads=2, assignment={"working_dir": str(tmp_path)})
    harness.until_state("w", "READY")
    harness.plan("w", generation=3, rank=1, world_size=4, local_rank=0, local_world_size=2, store=["127.0.0.1", 4711])
    result = harness.until_left("w")["result"]
    assert result["cwd"] == result["path"] == str(tmp_path)
    assert result["variables"] == {
        "RANK": "1",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "4711",
        "OMP_NUM_THREADS": "2",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "3",
        "COLOUR": "red",
    }


def test_steps_are_told_with_their_age(pair: Pair) -> None:
    """RUNNING comes with the first step; the beats carry the newest step and how long ago it was."""
    harness, _ = pair
    harness.run("w", "step")
    harness.until_state("w", "RUNNING")
    harness.until(lambda: (harness.worker("w")["step"] or 0) > 20)
    assert harness.worker("w")["step_ns"] < 5_000_000_000
    harness.wish(checkpoint=2, stop=True)
    assert harness.until_left("w")["result"] == {"outcome": "stopped", "reason": "Stopped", "wish": 2}


def test_a_rank_that_sends_no_steps_shows_its_progress(pair: Pair) -> None:
    """Ranks whose steps nobody needs as events tell their agent of them: they run, and no event goes further."""
    harness, _ = pair
    harness.run("w", "follow")
    harness.until_state("w", "RUNNING")
    harness.until(lambda: harness.worker("w")["step"] == 12)
    harness.wish(stop=True)
    assert harness.until_left("w")["result"]["rank"] == 0
    assert "w" not in harness.events


def test_an_event_that_cannot_be_sent_takes_no_other_with_it(pair: Pair) -> None:
    """What JSON does not know is told as text, or in the log."""
    harness, _ = pair
    harness.run("w", "tell_the_unsayable")
    assert harness.until_left("w")["reason"] == "Completed"
    assert [e["kind"] for _, e in sorted(harness.events["w"].items())] == ["before", "log", "text", "after"]
    assert "could not be sent" in harness.lines("w")[0]


def test_a_frozen_worker_shows_by_the_age_of_its_step(pair: Pair) -> None:
    """A stopped process is not lost, but its last step grows old, and a dump says what the kernel says of it."""
    harness, _ = pair
    harness.run("w", "step")
    pid = harness.until_state("w", "RUNNING")["pid"]
    os.kill(pid, signal.SIGSTOP)
    harness.until(lambda: harness.worker("w")["step_ns"] > 1_000_000_000)
    assert harness.worker("w")["quiet_ns"] > 900_000_000
    harness.until(lambda: harness.worker("w")["stopped_ns"] > 600_000_000)
    harness.say({"kind": "dump", "worker": "w"})
    (stacks,) = harness.until(lambda: harness.of_kind("stacks"))
    assert "T (stopped)" in stacks["text"]
    harness.say({"kind": "kill", "worker": "w", "why": "hung"})
    assert harness.until_left("w")["message"] == "ended by its agent: hung"


def test_what_workers_say_to_a_frozen_agent_is_kept(pair: Pair) -> None:
    """While the agent is stopped its workers step on; going again, it tells of every step, each once."""
    harness, agents = pair
    harness.run("w", "step")
    pid = harness.until_state("w", "RUNNING")["pid"]
    harness.until(lambda: len(harness.events.get("w", {})) > 5)
    os.kill(node_pid(agents), signal.SIGSTOP)
    before = len(harness.events["w"])
    worked = psutil.Process(pid).num_ctx_switches().voluntary
    until(lambda: psutil.Process(pid).num_ctx_switches().voluntary > worked + 100, "the worker stands still too")
    os.kill(node_pid(agents), signal.SIGCONT)
    harness.until(lambda: len(harness.events["w"]) > before + 20)
    assert sorted(harness.events["w"]) == list(range(len(harness.events["w"])))
    told = harness.events["w"].items()
    assert all((event["kind"], event["step"]) == ("step", number) for number, event in told)


def test_only_members_are_asked_to_regroup(pair: Pair) -> None:
    """The wish reaches the workers of that generation, and not one that gets its place later."""
    harness, _ = pair
    harness.run("old", "step")
    harness.until_state("old", "RUNNING")
    harness.spawn("new", "step")
    harness.until_state("new", "READY")
    harness.say({"kind": "regroup", "generation": 1})
    assert harness.until_left("old")["reason"] == "Regrouped"
    harness.plan("new", generation=2)
    harness.until(lambda: (harness.worker("new").get("step") or 0) > 10)


def test_a_plan_is_never_changed(pair: Pair) -> None:
    """A second plan for the same worker is not heeded."""
    harness, _ = pair
    harness.run("w", "step", generation=3)
    harness.until_state("w", "RUNNING")
    harness.plan("w", generation=4, rank=5, world_size=9)
    harness.wish(stop=True)
    assert harness.until_left("w")["generation"] == 3


# --- how workers end -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loop", "reason", "words", "collateral"),
    [
        ("fail", "ApplicationError", "ValueError: the sky fell", False),
        ("lose_peer", "ApplicationError", "Connection closed by peer", True),
        ("return_nothing", "ApplicationError", "returned None, not a mapping", False),
        ("leave_early", "WorkerLost", "exited with status 17", False),
        ("no_such_loop", "ApplicationError", "no_such_loop", False),
    ],
)
def test_the_reason_of_an_end_is_told(pair: Pair, loop: str, reason: str, words: str, collateral: bool) -> None:
    """A failure is told by its reason and text, a lost peer as another's, an exit without a word by its status."""
    harness, _ = pair
    harness.spawn("w", loop)
    harness.until(lambda: harness.of_kind("left") or harness.worker("w").get("state") == "READY")
    harness.plan("w")
    left = harness.until_left("w")
    assert (left["reason"], left["collateral"]) == (reason, collateral)
    assert words in left["message"]


def test_a_failed_warm_up_is_told_with_its_traceback(pair: Pair) -> None:
    """A worker that cannot warm up leaves with the reason, though it never had a place."""
    harness, _ = pair
    harness.spawn("w", "tests.engines.warm_loops:run", assignment={"warm": "fails"})
    left = harness.until_left("w")
    assert (left["reason"], left["generation"]) == ("ApplicationError", 0)
    assert "cannot build the operator" in left["message"]
    assert any("raise RuntimeError" in line for line in harness.lines("w"))


def test_a_killed_worker_is_told_by_its_signal(pair: Pair) -> None:
    """SIGKILL from outside is a lost worker; others are let be."""
    harness, _ = pair
    for name in ("a", "b"):
        harness.run(name, "step")
    pid = harness.until_state("a", "RUNNING")["pid"]
    os.kill(pid, signal.SIGKILL)
    left = harness.until_left("a")
    assert (left["reason"], left["exit"], left["pid"]) == ("WorkerLost", -9, pid)
    assert left["message"] == f"process {pid} was killed by SIGKILL"
    step = harness.until_state("b", "RUNNING")["step"]
    harness.until(lambda: (harness.worker("b")["step"] or 0) > (step or 0) + 5)


def test_a_crash_in_native_code_leaves_its_stack_in_the_log(pair: Pair) -> None:
    """After SIGSEGV the log shows where in Python it was, after all that the worker had said."""
    harness, _ = pair
    harness.run("w", "crash")
    left = harness.until_left("w")
    assert (left["reason"], left["exit"]) == ("WorkerLost", -11)
    assert "SIGSEGV" in left["message"]
    assert any("in crash" in line for line in harness.lines("w")), harness.lines("w")


def test_an_abort_ends_the_members_and_spares_the_standbys(pair: Pair) -> None:
    """All workers of the generation are killed, one that waits for its plan is not; a plan that comes late for the
    generation that was given up ends its worker too."""
    harness, _ = pair
    for name in ("a", "b"):
        harness.run(name, "step", generation=5)
    harness.spawn("c", "step")
    harness.until_state("c", "READY")
    harness.say({"kind": "abort", "generation": 5, "why": "a peer is lost"})
    assert {harness.until_left(name)["exit"] for name in ("a", "b")} == {-9}
    assert harness.until_state("c", "READY")
    harness.plan("c", generation=5)
    assert "given up" in harness.until_left("c")["message"]


def test_what_a_worker_started_ends_with_it(pair: Pair) -> None:
    """A process that a worker started goes when the worker is killed by us, by others, or ends by itself."""
    harness, _ = pair
    children = {}
    for name in ("a", "b", "c"):
        harness.run(name, "with_child")
        children[name] = harness.until_event(name, "child")["pid"]
        harness.until_state(name, "RUNNING")
    harness.say({"kind": "kill", "worker": "a", "why": "a test"})
    os.kill(harness.worker("b")["pid"], signal.SIGKILL)
    harness.wish(stop=True)
    for name, child in children.items():
        harness.until_left(name)
        until(lambda: gone(child), f"the child of {name} lives on")  # noqa: B023 - called at once


def test_a_worker_that_hangs_in_c_is_dumped_and_killed(pair: Pair) -> None:
    """With the main thread in native code, every signal blocked there and the interpreter's lock held, the stack is
    still told, twice, and the process still ends."""
    harness, _ = pair
    harness.run("w", "hang_in_c")
    harness.until_event("w", "waiting")
    for count in (1, 2):
        harness.say({"kind": "dump", "worker": "w"})
        stacks = harness.until(lambda: len(harness.of_kind("stacks")) == count and harness.of_kind("stacks")[-1])  # noqa: B023
        assert "in hang_in_c" in stacks["text"], stacks["text"]
        assert stacks["text"].count("in hang_in_c") == 1
    harness.say({"kind": "kill", "worker": "w", "why": "it hangs"})
    assert harness.until_left("w")["exit"] == -9


def test_a_dump_of_nobody_says_so(pair: Pair) -> None:
    """The answer comes also when the worker is gone."""
    harness, _ = pair
    harness.say({"kind": "dump", "worker": "nobody"})
    (stacks,) = harness.until(lambda: harness.of_kind("stacks"))
    assert "no such worker" in stacks["text"]


# --- the template ----------------------------------------------------------------------------------------------------


def test_when_the_template_is_killed_its_workers_are_lost_and_the_next_are_well(pair: Pair) -> None:
    """Workers die with the process that they were copied from, are told as lost, and a new template is started."""
    harness, agents = pair
    harness.run("a", "with_child")
    pids = [harness.until_state("a", "RUNNING")["pid"], harness.until_event("a", "child")["pid"]]
    first = template_of(agents)
    os.kill(first, signal.SIGKILL)
    left = harness.until_left("a")
    assert (left["reason"], left["exit"]) == ("WorkerLost", None)
    until(lambda: all(map(gone, pids)), "something of the worker lives on")
    harness.run("b", "count")
    assert harness.until_left("b")["reason"] == "Completed"
    assert template_of(agents) != first


@pytest.mark.parametrize("loops", ["threaded_loops", "refusing_loops", "dying_loops"])
def test_where_no_fork_can_be_workers_are_started_afresh(pair: Pair, loops: str) -> None:
    """A template with a second thread, or one whose imports fail or that dies of them, is given up; its workers are the
    agent's children."""
    harness, agents = pair
    for rank, name in enumerate(("a", "b")):
        harness.run(name, f"tests.engines.{loops}:run", generation=rank + 1)
        left = harness.until_left(name)
        assert left["reason"] == "Completed", left
        assert left["result"]["parent"] == node_pid(agents)


def test_a_template_that_is_killed_before_it_is_up_is_started_again(pair: Pair, tmp_path: Path) -> None:
    """One SIGKILL while it imports does not make every later worker of the node import everything for itself."""
    harness, agents = pair
    harness.run("w", "tests.engines.dying_loops:run", env={"KILLED_ONCE": str(tmp_path / "killed")})
    assert harness.until_left("w")["result"]["parent"] == template_of(agents)
    assert (tmp_path / "killed").exists()


def test_a_generation_is_remembered_when_its_worker_was_gone(tmp_path: Path) -> None:
    """The plan came too late for its worker; the next coordinator learns of its number all the same."""
    with one_agent(folder=tmp_path) as (harness, _):
        harness.plan("nobody", generation=7)
        harness.until_left("nobody")
        harness.go_away()
        second = Harness()
        second.listen()
        host, port = second.address
        (tmp_path / "coordinator").write_text(f"{host} {port}\n")
        second.until_connected()
        generation = second.connections[0].hello["generation"]
        second.say({"kind": "bye"})
        second.close()
    assert generation == 7


def test_processes_are_told_apart_by_number_where_the_kernel_gives_no_handle(tmp_path: Path) -> None:
    """Without pidfds (old kernels, some containers) workers are dumped, killed and told all the same."""
    (tmp_path / "sitecustomize.py").write_text("import os\nos.pidfd_open = lambda *_: os.read(-1, 1)\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        with one_agent() as (harness, agents):
            harness.run("w", "hang_in_c")
            harness.until_event("w", "waiting")
            assert "anon_inode:[pidfd]" not in {
                os.readlink(f"/proc/{node_pid(agents)}/fd/{fd}") for fd in os.listdir(f"/proc/{node_pid(agents)}/fd")
            }
            harness.say({"kind": "dump", "worker": "w"})
            (stacks,) = harness.until(lambda: harness.of_kind("stacks"))
            assert "in hang_in_c" in stacks["text"]
            harness.say({"kind": "kill", "worker": "w", "why": "a test"})
            assert harness.until_left("w")["exit"] == -9


def test_with_gpus_each_worker_is_a_fresh_process_and_gone_when_told(pair: Pair) -> None:
    """No fork; the end is told with the exit status."""
    with one_agent(gpus=True) as (harness, agents):
        harness.run("w", "tests.engines.warm_loops:run")
        left = harness.until_left("w")
        assert (left["reason"], left["exit"]) == ("Completed", 0)
        assert left["result"]["parent"] == node_pid(agents)


# --- the agent's own end, and a coordinator that is lost -------------------------------------------------------------


def test_nothing_is_left_of_a_killed_agent() -> None:
    """SIGKILL of the agent ends template, standbys, members (one of them hung) and what these started; none of them had
    memory in a file that could stay."""
    with one_agent() as (harness, agents):
        harness.run("a", "with_child")
        harness.until_state("a", "RUNNING")
        harness.run("b", "hang_in_c")
        harness.until_event("b", "waiting")
        harness.run("c", "publish")
        harness.until_event("c", "published")
        harness.spawn("d", "step")
        harness.until_state("d", "READY")
        family = psutil.Process(node_pid(agents)).children(recursive=True)
        assert len(family) == 6
        for process in (psutil.Process(node_pid(agents)), *family):
            assert "/dev/shm/" not in Path(f"/proc/{process.pid}/maps").read_text()
        os.kill(node_pid(agents), signal.SIGKILL)
        until(lambda: all(gone(process.pid) for process in family), "something lives on")


def test_after_goodbye_nothing_is_left(pair: Pair) -> None:
    """The agent ends its workers, also one that hangs, and exits with 0."""
    harness, agents = pair
    harness.run("a", "with_child")
    harness.until_state("a", "RUNNING")
    harness.run("b", "hang_in_c")
    harness.until_event("b", "waiting")
    (node,) = agents.nodes.values()
    family = psutil.Process(node.pid).children(recursive=True)
    harness.say({"kind": "bye"})
    assert node.process.wait(30) == 0
    assert all(gone(process.pid) for process in family)


def test_workers_go_on_while_the_coordinator_is_away(tmp_path: Path) -> None:
    """Members step on without a coordinator; another one, at another address, hears of them and of all they said."""
    with one_agent(folder=tmp_path) as (harness, _):
        harness.hear = False
        harness.run("a", "step", generation=2)
        harness.run("b", "count", generation=2)
        harness.until(lambda: (harness.worker("a").get("step") or 0) > 5)
        harness.until_left("b")
        pid, step = harness.worker("a")["pid"], harness.worker("a")["step"]
        harness.go_away()
        second = Harness()
        second.listen()
        host, port = second.address
        (tmp_path / "coordinator").write_text(f"{host} {port}\n")
        second.until_connected()
        (member,) = second.connections[0].hello["members"]
        assert (member["worker"], member["state"], member["generation"]) == ("a", "RUNNING", 2)
        assert (member["rank"], member["world_size"], member["pid"]) == (0, 1, pid)
        second.until(lambda: (second.worker("a").get("step") or 0) > step + 10)
        assert second.until_left("b")["reason"] == "Completed"
        assert sorted(second.events["b"]) == list(range(101))
        second.until(lambda: len(second.events.get("a", {})) > step + 5)
        assert sorted(second.events["a"]) == list(range(len(second.events["a"])))
        second.wish(stop=True)
        assert second.until_left("a")["reason"] == "Stopped"
        second.say({"kind": "bye"})
        second.until(lambda: second.connections[0].closed)
        second.close()


def test_an_agent_whose_coordinator_stays_away_ends_everything() -> None:
    """After the time set, workers and agent are gone, and the exit status says why."""
    with one_agent(orphan_seconds=1.0) as (harness, agents):
        harness.run("a", "step")
        harness.until_state("a", "RUNNING")
        (node,) = agents.nodes.values()
        family = psutil.Process(node.pid).children(recursive=True)
        harness.go_away()
        assert node.process.wait(30) == 75
        assert all(gone(process.pid) for process in family)


def test_sigterm_is_a_notice_first(pair: Pair) -> None:
    """With workers and a coordinator the agent warns, with the deadline, and goes on; told again, it ends everything."""
    harness, agents = pair
    harness.run("a", "step")
    harness.until_state("a", "RUNNING")
    (node,) = agents.nodes.values()
    node.process.terminate()
    (message,) = harness.until(lambda: harness.of_kind("notice"))
    notice = message["notice"]
    assert (notice["source"], notice["node"], notice["kind"]) == ("sigterm", "node-0", "termination")
    assert notice["deadline_ns"] - notice["received_ns"] == 25_000_000_000
    step = harness.worker("a")["step"]
    harness.until(lambda: harness.worker("a")["step"] > step + 5)
    node.process.terminate()
    assert node.process.wait(30) == 143


def test_when_the_time_that_sigterm_gives_is_over_everything_ends() -> None:
    """An agent that nobody says goodbye to leaves before it would be killed."""
    with one_agent(term_grace_seconds=0.5) as (harness, agents):
        harness.run("a", "step")
        harness.until_state("a", "RUNNING")
        (node,) = agents.nodes.values()
        node.process.terminate()
        assert node.process.wait(30) == 143


def test_a_notice_is_told_again_to_a_later_coordinator_until_it_is_withdrawn(tmp_path: Path) -> None:
    """What a source shows is told at once; who comes later hears what stands, and when it no longer does."""
    file = tmp_path / "notices.json"
    with one_agent(folder=tmp_path, notices=f"file:{file}") as (harness, _):
        aside = tmp_path / "aside"
        aside.write_text('{"kind": "drain"}')
        aside.replace(file)
        (message,) = harness.until(lambda: harness.of_kind("notice"))
        assert (message["notice"]["kind"], message["notice"]["node"]) == ("drain", "node-0")
        harness.go_away()
        harness.listen()
        (tmp_path / "coordinator").write_text("{} {}\n".format(*harness.address))
        harness.until(lambda: len(harness.of_kind("notice")) == 2)
        file.unlink()
        assert harness.until(lambda: len(harness.of_kind("notice")) == 3 and harness.of_kind("notice")[2])["notice"][
            "withdrawn"
        ]
        harness.go_away()
        harness.listen()
        (tmp_path / "coordinator").write_text("{} {}\n".format(*harness.address))
        harness.until_connected()
        harness.until(lambda: len(harness.of_kind("beat")) > 3)
        assert len(harness.of_kind("notice")) == 3


# --- memory and leaks ------------------------------------------------------------------------------------------------


def test_what_a_worker_kept_outlives_it(pair: Pair) -> None:
    """The shard of a killed worker is in the inventory; once a later generation is named, it is forgotten."""
    harness, _ = pair
    harness.run("w", "publish", generation=3)
    harness.until_event("w", "published")
    harness.say({"kind": "abort", "generation": 3, "why": "a test"})
    harness.say({"kind": "ask_inventory", "ticket": 9})
    (inventory,) = harness.until(lambda: harness.of_kind("inventory"))
    assert harness.until_left("w")["reason"] == "WorkerLost"
    assert inventory["ticket"] == 9
    assert inventory["shards"] == [{"generation": 3, "world_size": 1, "rank": 0, "step": 7, "bytes": 16, "own": True}]
    harness.say({"kind": "forget", "generation": 4, "step": 8})
    harness.say({"kind": "ask_inventory", "ticket": 10})
    assert (
        harness.until(lambda: len(harness.of_kind("inventory")) == 2 and harness.of_kind("inventory")[1])["shards"]
        == []
    )


def test_many_workers_leave_no_descriptors_behind(pair: Pair) -> None:
    """Agent and template have as many open files and threads after twenty workers, killed and ended, as after two."""
    harness, agents = pair
    counts: list[Any] = []
    for number in range(20):
        name = f"w{number}"
        harness.run(name, "count" if number % 2 else "step", generation=number + 1)
        if number % 2 == 0:
            harness.until_state(name, "RUNNING")
            harness.say({"kind": "kill", "worker": name, "why": "a test"})
        harness.until_left(name)
        harness.until(lambda: not harness.of_kind("beat")[-1]["workers"])
        harness.say({"kind": "forget", "generation": number + 2, "step": 0})
        harness.say({"kind": "ask_inventory", "ticket": number})
        harness.until(lambda: len(harness.of_kind("inventory")) == number + 1)  # noqa: B023 - called at once
        if number in (1, 19):
            processes = [psutil.Process(node_pid(agents)), psutil.Process(template_of(agents))]
            until(lambda: not processes[1].children(), "a worker lives on")  # noqa: B023
            counts.append([(process.num_fds(), process.num_threads()) for process in processes])
    assert counts[0] == counts[1]
