"""Parts of state in memory, in one process: what is published, frozen weights, leaving a save behind, drafts of generations."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator import storage
from orchestrator.spec.models import Checkpoint
from orchestrator.training.agreement import Peers
from orchestrator.training.cadence import Cadence
from orchestrator.training.errors import WorkerFailed
from orchestrator.training.fragments import Local
from orchestrator.training.link import Place, Wishes
from orchestrator.training.progress import Progress
from orchestrator.training.reporting import StepReports
from orchestrator.training.run_state import RunState
from orchestrator.training.snapshot import Packed
from tests.storage.samples import facts as whole_facts
from tests.storage.samples import save, write_files
from tests.training.test_fragments_parts import Small, small_state
from tests.training.test_saving import Content, World

WHERE = {"step": 4}


class Memory:
    """One rank's memory and, at once, the source for the next world."""

    source = None
    every = 1
    step = 4

    def __init__(self) -> None:
        self.layout: list[Place] = []
        self.room = bytearray()
        self.document: dict[str, Any] = {}

    def open(self, layout: Sequence[Place], nbytes: int, *, every: int | None = None) -> None:
        self.layout, self.room = list(layout), bytearray(nbytes)

    def settle(self) -> bool:
        return True

    def buffer(self, step: int) -> memoryview:
        return memoryview(self.room)

    def publish(self, step: int, document: Mapping[str, Any]) -> None:
        self.document = json.loads(json.dumps(document))

    def read_into(self, name: str, kind: str, start: int, end: int, out: memoryview) -> None:
        (place,) = [place for place in self.layout if (place.name, place.kind) == (name, kind)]
        item = storage.ITEM_BYTES[place.dtype]
        begin = place.offset + (start - place.start) * item
        out[:] = self.room[begin : begin + (end - start) * item]

    def close(self) -> None: ...


def run_state(folder: Path, fingerprint: str = "f") -> tuple[Small, RunState, Any]:
    torch.manual_seed(3)
    model, engine = small_state()
    facts = storage.Manifest(0, 0, storage.World(1), 0, "ranges", 0, 0, 1, fingerprint=fingerprint)
    peers = Peers(torch, 0, 1, "cpu")
    store = storage.open_store(str(folder))
    return model, RunState(torch, peers, store, engine, facts, {}, frozen_once=True), engine


def publish(state: RunState) -> Memory:
    memory = Memory()
    state.keep_in(memory)
    state.publish(4, WHERE)
    return memory


def kinds(memory: Memory) -> set[str]:
    return {place.kind for place in memory.layout}


def test_what_was_published_is_taken_up_bit_by_bit(tmp_path: Path) -> None:
    """Masters, moments and buffers come back, with the optimizer's numbers and where the run was."""
    model, state, engine = run_state(tmp_path)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(1.5)
        model.average.fill_(7)
    for local in engine.to_save():
        if local.kind.startswith("exp_avg"):
            local.view.uniform_()
    memory = publish(state)
    expected = {(local.name, local.kind): local.view.clone() for local in engine.to_save()}
    _, fresh, its_engine = run_state(tmp_path)
    assert fresh.adopt(memory) == WHERE
    for local in its_engine.to_save():
        assert torch.equal(local.view, expected[local.name, local.kind]), (local.name, local.kind)


def test_what_lies_side_by_side_is_copied_in_one_piece() -> None:
    """Neighbours in one tensor are one copy, though they are named in another order; what a step replaced is found again."""
    flat, alone = torch.arange(10, dtype=torch.float32), torch.full((3,), 9.0)

    def plan(flat: torch.Tensor) -> list[Local]:
        cuts = {"c": (7, 10), "a": (0, 4), "b": (4, 7)}
        found = [Local(name, "master", "float32", 0, high - low, flat[low:high]) for name, (low, high) in cuts.items()]
        return [*found, Local("d", "frozen", "float32", 0, 3, alone), Local("e", "master", "float32", 0, 3, alone)]

    present = plan(flat)
    packed = Packed(torch, present, "memory", ("frozen",))
    assert sorted(fragment.name for fragment in packed.layout.fragments) == ["a", "b", "c", "e"]
    assert packed.layout.total_bytes == 4 * 13
    for values in (flat, flat + 100):
        buffer = torch.zeros(packed.layout.total_bytes, dtype=torch.uint8)
        packed.copy(plan(values), buffer)
        assert len(packed._runs) == 2
        for fragment in packed.layout.fragments:
            local = next(local for local in plan(values) if local.name == fragment.name)
            stored = buffer[fragment.offset : fragment.offset + fragment.bytes].view(torch.float32)
            assert stored.tolist() == local.view.tolist()
    with pytest.raises(WorkerFailed, match="cut otherwise"):
        packed.copy([replace(local, end=local.end + 1) for local in present], torch.zeros(60, dtype=torch.uint8))


def test_frozen_weights_that_never_changed_are_not_published(tmp_path: Path) -> None:
    """They are what every worker has made from the same source; taking up leaves them alone."""
    _, state, _ = run_state(tmp_path)
    memory = publish(state)
    assert kinds(memory) == {"master", "exp_avg", "exp_avg_sq", "buffer"}
    model, fresh, _ = run_state(tmp_path)
    fresh.adopt(memory)
    assert model.fixed.tolist() == [1.0] * 4


def test_frozen_weights_that_a_load_replaced_travel_through_memory(tmp_path: Path) -> None:
    """A checkpoint or an import brought others: the next worlds, which made the model's own, get those, and pass them on."""
    model, state, engine = run_state(tmp_path)

    def read(local: Local) -> None:
        if local.kind == "frozen":
            local.view.fill_(2)

    engine.load(engine.parameters, read, engine.scalars())
    memory = publish(state)
    for _ in range(2):
        assert "frozen" in kinds(memory)
        model, fresh, _ = run_state(tmp_path)
        fresh.adopt(memory)
        assert model.fixed.tolist() == [2.0] * 4
        memory = publish(fresh)


def test_loading_the_same_frozen_weights_changes_nothing(tmp_path: Path) -> None:
    """A checkpoint of the same model gives back the bits that are there: they need not travel."""
    _, state, engine = run_state(tmp_path)
    engine.load(engine.parameters, lambda local: None, engine.scalars())
    assert "frozen" not in kinds(publish(state))


def test_the_state_of_another_run_is_refused(tmp_path: Path) -> None:
    """Memory of other data, another model, batch or seed is not taken up, whatever its shapes."""
    _, state, _ = run_state(tmp_path)
    memory = publish(state)
    _, other, _ = run_state(tmp_path, "another")
    with pytest.raises(WorkerFailed, match="another run"):
        other.adopt(memory)


def test_leaving_lets_a_slow_save_go(tmp_path: Path) -> None:
    """After `leave` nothing of a save that hangs is durable or told; the next generation saves the same step."""
    first = World(tmp_path)
    slow = Content(held=True)
    first.save(1, slow)
    assert slow.asked.wait(20)
    first.saver.leave(0.01)
    first.saver.close()
    assert first.saved == []
    assert first.steps() == []
    second = World(tmp_path)
    second.save(1, Content())
    second.saver.finish()
    second.saver.close()
    assert second.steps() == [1]
    slow.gate.set()


def test_leaving_finishes_a_save_that_is_nearly_done(tmp_path: Path) -> None:
    """What is written by then becomes a checkpoint and is told."""
    world = World(tmp_path)
    world.save(1, Content())
    world.saver.leave(20)
    world.saver.close()
    assert [saved.listed.step for saved in world.saved] == world.steps() == [1]
    assert world.saver.durable_step == 1


@pytest.mark.parametrize("place", ["local", "memory"])
def test_drafts_of_two_generations_do_not_meet(tmp_path: Path, place: str) -> None:
    """A rank that is thought dead writes on into its own draft; the next generation's checkpoint of that step stays whole."""
    store = storage.open_store(str(tmp_path) if place == "local" else f"memory://{tmp_path.name}")
    old, new = store.draft(5, 1, 1), store.draft(5, 1, 2)
    old.begin()
    write_files(old, 5)
    new.begin()
    entries = write_files(new, 5)
    old.write("stray.bin", [b"late"])
    listed = new.commit(whole_facts(5, 1), entries)
    old.write("later.bin", [b"later still"])
    assert store.verify(listed.uri).whole
    assert [item.why for item in store.list()] == [None]


@pytest.mark.parametrize("place", ["local", "memory"])
def test_leftovers_of_earlier_generations_are_cleared(tmp_path: Path, place: str) -> None:
    """A generation clears what earlier ones of its attempt left, never what it or a later one is writing."""
    store = storage.open_store(str(tmp_path) if place == "local" else f"memory://{tmp_path.name}-left")
    for generation in (0, 1, 2, 10):
        store.draft(5, 2, generation).write("a.bin", [b"a"])
    save(store, 4, attempt=2)
    removed = store.clean_leftovers(2, 2)
    name = "partial" if place == "local" else "attempt"
    assert sorted(uri.rpartition("/")[2] for uri in removed) == [f"step-00000005.{name}-2", f"step-00000005.{name}-2.1"]
    assert len(store.clean_leftovers(3)) == 2
    assert [item.step for item in store.list() if item.whole] == [4]


def test_reports_are_forgotten_up_to_a_step() -> None:
    """What a checkpoint has is dropped; the document for memory holds the newest few."""
    reports = StepReports([{"step": step} for step in range(1, 101)])
    reports.forget(30)
    progress = Progress(step=100, reports=reports)
    assert [report["step"] for report in progress.to_document()["reports"]["kept"]] == list(range(31, 101))
    assert [report["step"] for report in progress.to_document(3)["reports"]["kept"]] == [98, 99, 100]
    assert Progress.from_document(progress.to_document()) == progress


class StillClock:
    """Stands until it is moved."""

    now = 0

    def now_ns(self) -> int:
        return self.now

    def monotonic_ns(self) -> int:
        return self.now


def test_time_without_a_save_counts_across_worlds() -> None:
    """A save that is due every minute is due although no world lives that long."""
    checkpoint = Checkpoint(every="60s")
    clock, unsaved_ns = StillClock(), 0
    for _ in range(3):
        cadence = Cadence(checkpoint, clock, 0, unsaved_ns)
        clock.now += 19 * 10**9
        assert not cadence.time_due(Wishes())
        unsaved_ns = cadence.unsaved_ns
    cadence = Cadence(checkpoint, clock, 0, unsaved_ns)
    clock.now += 4 * 10**9
    assert cadence.time_due(Wishes())
    cadence.saved()
    assert not cadence.time_due(Wishes())
