"""A world of any size takes up what a world of any other size left in memory, from whoever still has it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.domain.errors import CorruptCheckpoint
from orchestrator.platforms.engines.native.memory import Memory, Source
from orchestrator.platforms.engines.native.shards import ShardStore
from orchestrator.storage.manifest import ITEM_BYTES
from tests.engines.shard_worlds import (
    TOKEN,
    Model,
    open_shard,
    plan_of,
    publish,
    rank_memory,
    stores,
    wait_for,
)

MODEL = Model({"w": 4001, "b": 3, "v": 640})


def live(nodes: Sequence[ShardStore], model: Model, steps: Sequence[int], *, apart: bool = False) -> list[Memory]:
    """A world of one rank a node that has published these steps, each with its copy at the next node."""
    size = len(nodes)
    memories = []
    for rank, node in enumerate(nodes):
        replica = nodes[(rank + 1) % size].address if size > 1 else None
        memory = rank_memory(node, rank=rank, world_size=size, replica=replica)
        shard = model.shard(rank, size, apart=apart)
        open_shard(memory, shard)
        for step in steps:
            publish(memory, model, shard, step)
        assert memory.settle() or size == 1
        memory.close()
        memories.append(memory)
    return memories


def source_of(plan: dict[str, object] | None, near: ShardStore | None = None) -> Source:
    assert plan is not None
    return Source(plan, TOKEN, near=near.address if near else None, patience_seconds=5.0)


def assert_whole(source: Source, model: Model, step: int, readers: int, *, apart: bool) -> None:
    """Each rank of a new world of `readers` reads its shard, and has what was published."""
    for rank in range(readers):
        for item in model.shard(rank, readers, apart=apart):
            width = ITEM_BYTES[item.dtype]
            out = bytearray(item.bytes)
            source.read_into(item.name, item.kind, item.start, item.end, memoryview(out))
            assert bytes(out) == model.values(item.name, item.kind, step)[item.start * width : item.end * width]


@settings(max_examples=25)
@given(
    sizes=st.lists(st.integers(0, 900), min_size=1, max_size=6),
    writers=st.integers(1, 5),
    readers=st.integers(1, 5),
    apart=st.tuples(st.booleans(), st.booleans()),
)
def test_any_world_reads_what_any_other_wrote(
    sizes: list[int], writers: int, readers: int, apart: tuple[bool, bool]
) -> None:
    """N ranks publish, M ranks read their own slices, each in its own cut of the same model: bit for bit what was written."""
    model = Model({f"p{number}": size for number, size in enumerate(sizes)})
    with stores(writers) as nodes:
        live(nodes, model, [1, 2], apart=apart[0])
        source = source_of(plan_of(nodes, 2))
        assert_whole(source, model, 2, readers, apart=apart[1])
        assert [document["step"] for document in source.documents.values()] == [2] * writers
        source.close()


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_one_lost_node_costs_nothing(lost: int) -> None:
    """Of three nodes any one is gone: the newest step is whole in the two others' inventories, and what it gives is right."""
    with stores(3) as nodes:
        live(nodes, MODEL, [1, 2, 3])
        nodes[lost].close()
        left = [node for number, node in enumerate(nodes) if number != lost]
        source = source_of(plan_of(left, 3), near=left[0])
        assert_whole(source, MODEL, 3, 2, apart=False)
        assert source.dtype("w", "half") == "bfloat16"
        assert source.kinds("w") == {"master", "half"}
        assert source.kinds("unknown") == frozenset()
        source.close()


def test_a_pair_lost_together_is_seen_in_the_inventory() -> None:
    """Both holders of a shard are gone: no step is whole any more, and a plan that says otherwise fails in words."""
    with stores(3) as nodes:
        live(nodes, MODEL, [1, 2])
        plan = plan_of(nodes, 2)
        nodes[0].close()
        nodes[1].close()
        assert plan_of([nodes[2]], 2) is None
        assert plan_of([nodes[2]], 1) is None
        source = source_of(plan)
        with pytest.raises(
            CorruptCheckpoint, match=r"rank 0 of generation 1 at step 2 can be had nowhere .*load the newest"
        ):
            source.read_into("w", "master", 0, 1, memoryview(bytearray(4)))
        source.close()
        assert plan is not None
        del plan["shards"][0]
        source = source_of(plan)
        with pytest.raises(CorruptCheckpoint, match="lacks the shard of rank 0"):
            _ = source.document
        source.close()


def test_a_place_that_dies_while_it_is_read_makes_way_for_the_next() -> None:
    """The node with rank 1's own shard dies after a slice of rank 0's: the rest comes from the copy, and all of it is right."""
    with stores(3) as nodes:
        live(nodes, MODEL, [1, 2])
        source = source_of(plan_of(nodes, 2), near=nodes[1])
        source.read_into("w", "master", 0, 100, memoryview(bytearray(400)))
        nodes[1].close()
        assert_whole(source, MODEL, 2, 4, apart=True)
        source.close()


def test_damaged_bytes_are_had_elsewhere() -> None:
    """A copy whose bytes have changed in memory is noticed by its hashes, and the own shard is read instead; and when both
    are damaged, the reader says so."""
    with stores(2) as nodes:
        live(nodes, MODEL, [1])
        copy = nodes[1]._copies[1, 0].whole()[0]
        copy.data[:4] = b"evil" if bytes(copy.data[:4]) != b"evil" else b"good"
        plan = plan_of(nodes, 1)
        source = source_of(plan, near=nodes[1])
        assert_whole(source, MODEL, 1, 1, apart=False)
        source.close()
        segment = nodes[0]._own[1, 0].segment
        segment.data(segment.published()[0].slot)[:4] = bytes(copy.data[:4])
        source = source_of(plan, near=nodes[0])
        with pytest.raises(CorruptCheckpoint, match="not what it was described as"):
            assert_whole(source, MODEL, 1, 1, apart=False)
        source.close()


def test_a_gap_between_shards_is_named() -> None:
    """A parameter that no rank has whole is refused with the elements that are missing, and others are read."""
    with stores(1) as (node,):
        memory = rank_memory(node)
        shard = [item for item in MODEL.shard(0, 3, apart=True) if item.name == "w"] + [
            item for item in MODEL.shard(0, 1, apart=True) if item.name == "b"
        ]
        shard = [
            type(item)(item.name, item.kind, item.dtype, item.start, item.end, item.file, 8192 * number)
            for number, item in enumerate(shard)
        ]
        open_shard(memory, shard)
        publish(memory, MODEL, shard, 5)
        source = source_of(plan_of([node], 5))
        with pytest.raises(
            CorruptCheckpoint, match=r"generation 1 at step 5 in memory: w \(master\) lacks its elements 1333 to 4000"
        ):
            source.read_into("w", "master", 0, 4001, memoryview(bytearray(4 * 4001)))
        with pytest.raises(CorruptCheckpoint, match="it has no master of v"):
            source.read_into("v", "master", 0, 1, memoryview(bytearray(4)))
        out = bytearray(12)
        source.read_into("b", "master", 0, 3, memoryview(out))
        assert bytes(out) == MODEL.values("b", "master", 5)
        source.close()
        memory.close()


def test_shards_of_another_world_are_not_mixed_in() -> None:
    """A plan that names the wrong world size is refused, not read as if it were right."""
    with stores(2) as nodes:
        live(nodes, MODEL, [1])
        plan = plan_of(nodes, 1)
        assert plan is not None
        source = source_of({**plan, "world_size": 1, "shards": {"0": plan["shards"][0]}})
        with pytest.raises(CorruptCheckpoint, match="the shard of rank 0 is of another world"):
            source.kinds("w")
        source.close()


def test_a_world_reads_what_the_one_before_left_while_it_writes_its_own() -> None:
    """The new generation publishes beside the old one's shards; its readers still find the old step until it is forgotten."""
    with stores(2) as nodes:
        live(nodes, MODEL, [1, 2])
        heir = rank_memory(nodes[0], generation=2, source=plan_of(nodes, 2), replica=nodes[1].address)
        shard = MODEL.shard(0, 1, apart=False)
        open_shard(heir, shard)
        for step in (3, 4, 5, 6):
            publish(heir, MODEL, shard, step)
        assert heir.source is not None
        assert_whole(heir.source, MODEL, 2, 3, apart=True)
        heir.settle()
        nodes[0].forget(2, 6)
        nodes[1].forget(2, 6)
        assert plan_of(nodes, 2) is None
        assert plan_of(nodes, 6, 2) is not None
        heir.close()


def test_large_shards_are_read_in_blocks() -> None:
    """Slices across blocks of 4 MiB, over several connections at once, are what was written."""
    model = Model({"large": 3_500_000, "small": 10}, kinds=[("master", "float32")])
    with stores(2) as nodes:
        live(nodes, model, [1])
        source = source_of(plan_of(nodes, 1), near=nodes[0])
        assert_whole(source, model, 1, 3, apart=True)
        source.close()
        wait_for(lambda: nodes[0]._server.connections <= 1, "the readers' connections have ended")
