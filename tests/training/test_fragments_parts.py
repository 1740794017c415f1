"""Ranges without engines: how state is cut, how a cover is checked, what is refused before anything is read."""

from __future__ import annotations

import json
from copy import copy
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.storage import Parameter
from orchestrator.training import deepspeed_state
from orchestrator.training.agreement import Peers
from orchestrator.training.deepspeed_scalars import accept, apply, collect
from orchestrator.training.deepspeed_state import Holder, Piece, complete_state, find_layout
from orchestrator.training.errors import Reason, WorkerFailed
from orchestrator.training.fragments import (
    EngineState,
    Local,
    attach,
    cover_faults,
    cut,
    differences,
    refuse_differences,
)

sizes_of_things = st.lists(st.integers(0, 50), max_size=12)


# --- cutting -----------------------------------------------------------------------------------------------------------
@given(sizes_of_things, st.integers(1, 7))
def test_the_parts_of_a_cut_are_everything_once(sizes: list[int], parts: int) -> None:
    """Cut into any number of parts, every element of every thing is in exactly one part."""
    ranges = [(str(index), start, end) for part in range(parts) for index, start, end in cut(sizes, parts, part)]
    assert cover_faults({str(index): size for index, size in enumerate(sizes)}, ranges) == []


@given(sizes_of_things, st.integers(1, 7))
def test_the_parts_of_a_cut_are_nearly_equal(sizes: list[int], parts: int) -> None:
    """No part is more than one element longer than another."""
    lengths = [sum(end - start for _, start, end in cut(sizes, parts, part)) for part in range(parts)]
    assert max(lengths) - min(lengths) <= 1


def test_a_cut_is_made_at_few_places() -> None:
    """Things are cut only where a part ends, so a checkpoint has about as many fragments as parameters."""
    assert sum(len(cut([10] * 100, 3, part)) for part in range(3)) == 102


# --- covers ------------------------------------------------------------------------------------------------------------
@given(sizes_of_things.filter(any), st.integers(1, 5), st.data())
def test_a_lost_or_doubled_range_is_found(sizes: list[int], parts: int, data: st.DataObject) -> None:
    """Taking one range away, or having it twice, is a fault that names the parameter."""
    whole = {f"p{index}": size for index, size in enumerate(sizes)}
    ranges = [(f"p{i}", start, end) for part in range(parts) for i, start, end in cut(sizes, parts, part)]
    odd = data.draw(st.sampled_from(ranges))
    without = list(ranges)
    without.remove(odd)
    for wrong in (without, [*ranges, odd]):
        assert any(odd[0] in fault for fault in cover_faults(whole, wrong))


def test_a_range_of_nobody_is_found() -> None:
    """A range of a name that is no parameter, and one that runs over its end, are faults."""
    assert cover_faults({}, [("ghost", 0, 1)]) == ["ghost is not a parameter"]
    assert cover_faults({"a": 3}, [("a", 0, 4)]) == ["a ends at element 4 of 3"]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 5)), max_size=6), st.integers(0, 4))
def test_gaps_and_pieces_fill_a_holder(layout: list[tuple[int, int]], tail: int) -> None:
    """What lies in no piece of a holder is padding; pieces and gaps together are the holder."""
    pieces, at, padding = [], 0, 0
    for gap, length in layout:
        at += gap
        padding += gap
        pieces.append(Piece("a", 0, length, at))
        at += length
    holder = Holder(torch.zeros(at + tail), 0, ("a",), tuple(reversed(pieces)))
    gaps = list(holder.gaps())
    assert sum(end - start for start, end in gaps) == padding + tail
    marked = torch.zeros(at + tail)
    for start, end in gaps:
        marked[start:end] += 1
    for piece in pieces:
        marked[piece.offset : piece.offset + piece.end - piece.start] += 1
    assert marked.tolist() == [1.0] * (at + tail)


# --- another model -----------------------------------------------------------------------------------------------------
WEIGHT = Parameter("layer.weight", (3, 5), "float32", "trained")


@pytest.mark.parametrize(
    ("saved", "present", "words"),
    [
        ([WEIGHT], [], "layer.weight is only in the checkpoint"),
        ([], [WEIGHT], "layer.weight is only in the model"),
        (
            [WEIGHT],
            [replace(WEIGHT, role="frozen")],
            "layer.weight is trained in the checkpoint and frozen in the model",
        ),
        (
            [WEIGHT],
            [replace(WEIGHT, shape=(5, 3))],
            "layer.weight has shape [3, 5] in the checkpoint and [5, 3] in the model",
        ),
        (
            [replace(WEIGHT, role="frozen")],
            [replace(WEIGHT, role="frozen", dtype="bfloat16")],
            "layer.weight is float32 in the checkpoint and bfloat16 in the model",
        ),
    ],
)
def test_another_model_is_refused_by_name(saved: list[Parameter], present: list[Parameter], words: str) -> None:
    """A missing, new, otherwise shaped, otherwise trained or otherwise typed parameter is named with what differs."""
    with pytest.raises(WorkerFailed, match="another model or another set") as caught:
        refuse_differences(saved, present)
    assert caught.value.reason == Reason.CONFIG_INVALID
    assert words in caught.value.message
    assert caught.value.hint


def test_a_precision_is_no_difference_of_trained_parameters() -> None:
    """A trained parameter's master is float32 in every precision, so bf16 may go on where float32 stopped."""
    assert differences([WEIGHT], [replace(WEIGHT, dtype="bfloat16", aliases=("head.weight",))]) == []


def test_the_first_differences_are_listed_and_the_rest_counted() -> None:
    """Of many differing parameters the message names three and says how many more there are."""
    many = [replace(WEIGHT, name=f"layer.{number}.weight") for number in range(10)]
    with pytest.raises(WorkerFailed, match=r"layer\.2\.weight is only in the checkpoint, and 7 more"):
        refuse_differences(many, [])


# --- optimizers --------------------------------------------------------------------------------------------------------
def made(kind: Any, **more: Any) -> tuple[Any, Any]:
    weight = torch.nn.Parameter(torch.randn(7))
    return kind([weight], lr=0.1, **more), weight


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        (torch.optim.AdamW, {}),
        (torch.optim.Adam, {"amsgrad": True}),
        (torch.optim.SGD, {"momentum": 0.9}),
        (torch.optim.SGD, {}),
    ],
)
def test_state_made_by_hand_is_what_the_first_step_begins_with(kind: Any, more: dict[str, Any]) -> None:
    """Steps after `complete_state` move a weight to the same bits as steps without it."""
    results = []
    for by_hand in (False, True):
        torch.manual_seed(3)
        optimizer, weight = made(kind, **more)
        if by_hand:
            complete_state(optimizer, optimizer.param_groups[0], weight)
        for _ in range(3):
            weight.grad = torch.randn(7)
            optimizer.step()
        results.append((weight.detach(), complete_state(optimizer, optimizer.param_groups[0], weight)))
    (first, state), (second, state_by_hand) = results
    assert torch.equal(first, second)
    assert state.keys() == state_by_hand.keys()
    assert all(torch.equal(torch.as_tensor(state[name]), torch.as_tensor(state_by_hand[name])) for name in state)


@pytest.mark.parametrize(
    ("kind", "more", "words"),
    [
        (torch.optim.LBFGS, {}, "torch.optim.lbfgs.LBFGS"),
        (torch.optim.Adafactor, {}, "Adafactor"),
        (torch.optim.SGD, {"momentum": 0.9, "dampening": 0.5}, "dampening"),
    ],
)
def test_an_unknown_optimizer_is_refused_by_name(kind: Any, more: dict[str, Any], words: str) -> None:
    """An optimizer whose state is not known to be per element is refused before a checkpoint is written."""
    optimizer, weight = made(kind, **more)
    with pytest.raises(WorkerFailed, match=words) as caught:
        complete_state(optimizer, optimizer.param_groups[0], weight)
    assert caught.value.reason == Reason.CONFIG_INVALID


def test_an_unknown_entry_of_a_known_optimizer_is_refused_by_name() -> None:
    """State that a subclass or hook has added to a known optimizer is not lost in silence."""
    optimizer, weight = made(torch.optim.AdamW)
    complete_state(optimizer, optimizer.param_groups[0], weight)
    optimizer.state[weight]["curvature"] = torch.zeros(3)
    with pytest.raises(WorkerFailed, match="'curvature'"):
        complete_state(optimizer, optimizer.param_groups[0], weight)


# --- engines -----------------------------------------------------------------------------------------------------------
class DeepSpeedEngine:
    """What `find_layout` asks an engine, with the answers of stage 0."""

    def __init__(self, **over: Any) -> None:
        self.weight = torch.nn.Parameter(torch.zeros(3))
        self.optimizer: Any = torch.optim.AdamW([self.weight])
        self.basic_optimizer: Any = self.optimizer
        self.has_moe_layers = False
        self.global_steps = self.micro_steps = self.global_samples = self.skipped_steps = 0
        self.lr_scheduler: Any = None
        answers = {
            "gradient_accumulation_steps": 1,
            "managed_gradient_accumulation": True,
            "autotp_size": 1,
            "torch_autocast_enabled": False,
            "zero_hpz_partition_size": 1,
            "zero_quantized_weights": False,
            "zero_quantized_nontrainable_weights": False,
            "zero_offload_param": None,
            "zero_offload_optimizer": None,
        }
        for name, value in {**answers, **over}.items():
            setattr(self, name, partial(copy, value) if name in answers else value)


class Small(torch.nn.Module):
    """Two trained layers with one weight between them, a frozen one, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(3, 3)
        self.second = torch.nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.fixed = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16), requires_grad=False)
        self.average: torch.Tensor
        self.register_buffer("average", torch.zeros(2))
        self.register_buffer("scratch", torch.zeros(2), persistent=False)


def small_state() -> tuple[Small, EngineState]:
    model = Small()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    engine = DeepSpeedEngine(module=model, optimizer=optimizer, basic_optimizer=optimizer)
    return model, attach(engine, Peers(torch, 0, 1, "cpu"), deepspeed_version="0.19.8")


def place(engine: Any, version: str = "0.19.8") -> Any:
    return find_layout(engine, {id(engine.weight): "weight"}, 0, 1, version)


def test_a_plain_engine_is_known() -> None:
    """An engine of stage 0 has one holder for each parameter, all of it on every rank."""
    layout = place(DeepSpeedEngine())
    (holder,) = layout.holders()
    assert holder.pieces == (Piece("weight", 0, 3, 0),)
    assert not layout.spread


@pytest.mark.parametrize(
    ("over", "words"),
    [
        ({"has_moe_layers": True}, "MoE"),
        ({"optimizer": None}, "without an optimizer"),
        ({"autotp_size": 2}, "tensor parallelism"),
        ({"torch_autocast_enabled": True}, "autocast"),
        ({"zero_hpz_partition_size": 2}, "hpZ"),
        ({"zero_quantized_weights": True}, "quantised"),
        ({"zero_offload_param": SimpleNamespace(device="cpu")}, "offload_param"),
        ({"zero_offload_optimizer": SimpleNamespace(device="nvme", ratio=1.0)}, "NVMe"),
        ({"zero_offload_optimizer": SimpleNamespace(device="cpu", ratio=0.5)}, "partial offload"),
        ({"optimizer": type("MiCS_Optimizer", (), {})()}, "MiCS_Optimizer"),
        (
            {"optimizer": type("DeepSpeedZeroOptimizer", (), {"master_weights_and_grads_dtype": torch.bfloat16})()},
            "half precision",
        ),
    ],
)
def test_what_is_not_known_is_refused_by_name(over: dict[str, Any], words: str) -> None:
    """Each feature of DeepSpeed whose state is not known here is named, with what to do."""
    with pytest.raises(WorkerFailed, match=words) as caught:
        place(DeepSpeedEngine(**over))
    assert caught.value.reason == Reason.CONFIG_INVALID
    assert caught.value.hint


def test_another_kind_of_engine_is_refused_by_name() -> None:
    """Pipeline and hybrid engines are engines of their own kind."""
    with pytest.raises(WorkerFailed, match="PipelineEngine"):
        place(type("PipelineEngine", (DeepSpeedEngine,), {})())


@pytest.mark.parametrize("version", ["0.18.9", "0.20.0", "1.19.0", "main"])
def test_an_untested_deepspeed_is_refused_by_name(version: str) -> None:
    """Only releases of the tested minor version are trusted to keep their insides where they were found."""
    with pytest.raises(WorkerFailed, match=version) as caught:
        place(DeepSpeedEngine(), version)
    assert ".".join(map(str, deepspeed_state.TESTED)) in (caught.value.hint or "")


def test_a_parameter_of_another_model_is_refused() -> None:
    """An optimizer that trains a tensor which is not in the model is told apart by its shape."""
    engine = DeepSpeedEngine()
    stranger = torch.nn.Parameter(torch.zeros(4, 2))
    engine.optimizer.add_param_group({"params": [stranger]})
    with pytest.raises(WorkerFailed, match=r"shape \(4, 2\)"):
        place(engine).holders()


# --- an engine's ranges ------------------------------------------------------------------------------------------------
def test_a_model_is_listed_once_with_its_roles() -> None:
    """Tied weights are one parameter with two names; buffers that a state_dict leaves out are left out."""
    _, state = small_state()
    assert {parameter.name: (parameter.role, parameter.aliases) for parameter in state.parameters} == {
        "fixed": ("frozen", ()),
        "first.weight": ("trained", ("second.weight",)),
        "first.bias": ("trained", ()),
        "second.bias": ("trained", ()),
        "average": ("buffer", ()),
    }


def test_ranges_come_kind_by_kind_in_the_models_order() -> None:
    """What is saved and what is loaded have one order, so that a file is read from its beginning to its end."""
    _, state = small_state()
    order = [(local.kind, local.name) for local in state.to_save()]
    trained = ["first.weight", "first.bias", "second.bias"]
    assert order == [
        ("frozen", "fixed"),
        ("buffer", "average"),
        *((kind, name) for kind in ("master", "exp_avg", "exp_avg_sq") for name in trained),
    ]
    assert [(local.kind, local.name) for local in state.to_load()] == order


def test_views_are_live_and_kept_until_a_tensor_is_replaced() -> None:
    """The same list comes back while tensors stay; a buffer that was put in another's place is seen."""
    model, state = small_state()
    views = state.to_save()
    with torch.no_grad():
        model.first.bias.fill_(5)
    assert state.to_save() is views
    assert next(local.view for local in views if local.name == "first.bias").tolist() == [5.0] * 3
    model.average = model.average + 1
    again = state.to_save()
    assert again is not views
    assert next(local.view for local in again if local.name == "average").tolist() == [1.0, 1.0]


def test_what_lies_in_pieces_is_refused_by_name() -> None:
    """A parameter that is a transposed view has no flat order in memory."""
    model = Small()
    model.first.weight = torch.nn.Parameter(torch.zeros(3, 2).T)
    engine = DeepSpeedEngine(module=model)
    with pytest.raises(WorkerFailed, match=r"first\.weight, which does not lie in one piece"):
        attach(engine, Peers(torch, 0, 1, "cpu"), deepspeed_version="0.19.8")


def test_a_failed_read_is_raised_and_a_read_state_is_taken_up() -> None:
    """`load` fills every range through `read`; what `read` raises leaves it."""
    _, old = small_state()
    _, new = small_state()
    stored = {(local.name, local.kind): local.view.clone() for local in old.to_save()}
    scalars = through_json(old.scalars())

    def fail(local: Local) -> None:
        raise WorkerFailed(Reason.STORAGE_FAILED, f"{local.name} is torn")

    with pytest.raises(WorkerFailed, match="is torn"):
        new.load(old.parameters, fail, scalars)

    def fill(local: Local) -> None:
        local.view.copy_(stored[local.name, local.kind])

    new.load(old.parameters, fill, scalars)
    assert all(torch.equal(local.view, stored[local.name, local.kind]) for local in new.to_save())


def test_padding_is_never_listed_and_is_cleared_by_a_load() -> None:
    """Elements of a flat tensor that belong to no parameter are in no range, and zero after a load."""
    _, state = small_state()
    padded = torch.full((6,), 7.0)
    state._holders = [Holder(padded, 0, ("first.bias",), (Piece("first.bias", 0, 3, 1),))]
    ranges = [local for local in state.to_load() if local.kind == "master"]
    assert [(local.name, local.start, local.end) for local in ranges] == [("first.bias", 0, 3)]
    state._clear_padding()
    assert padded.tolist() == [0.0, 7.0, 7.0, 7.0, 0.0, 0.0]


# --- what is not per element -------------------------------------------------------------------------------------------
def stepped(engine: Any, steps: int) -> Any:
    """The layout of an engine whose only parameter was stepped so often."""
    layout = place(engine)
    for _ in range(steps):
        engine.weight.grad = torch.ones(3)
        engine.optimizer.step()
    engine.global_steps = engine.micro_steps = steps
    return layout


def through_json(scalars: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(scalars))
    return found


def test_scalars_travel_as_json() -> None:
    """Steps, hyperparameters and counters that went through JSON bring a fresh engine to where the other was."""
    old = DeepSpeedEngine()
    old.optimizer.param_groups[0] |= {"lr": 0.1 + 0.2, "betas": (0.8, 0.95)}
    layout = stepped(old, 7)
    saved = through_json(collect(layout, layout.holders()))
    new = DeepSpeedEngine(gradient_accumulation_steps=4)
    fresh = place(new)
    holders = fresh.holders()
    apply(fresh, holders, accept(fresh, holders, saved), saved)
    assert (new.global_steps, new.micro_steps) == (7, 28)
    assert new.optimizer.param_groups[0]["betas"] == (0.8, 0.95)
    assert collect(fresh, holders)["optimizer"] == collect(layout, layout.holders())["optimizer"]


def test_unequal_steps_are_kept_or_refused() -> None:
    """Step numbers that differ by parameter survive, and are refused by name where one number stands for all."""
    engine = DeepSpeedEngine()
    layout = stepped(engine, 3)
    late = torch.nn.Parameter(torch.zeros(2))
    engine.optimizer.add_param_group({"params": [late]})
    layout.names = {id(engine.weight): "weight", id(late): "late"}
    saved = through_json(collect(layout, layout.holders()))["optimizer"]
    assert {saved["steps"], *saved["steps_of"].values()} == {3, 0}
    whole = Holder(engine.weight, 0, ("early", "late", "weight"), (Piece("weight", 0, 3, 0),))
    present = collect(layout, [whole])
    present["optimizer"] |= {"steps": 3, "steps_of": {"late": 0}}
    with pytest.raises(WorkerFailed, match="0 of late") as caught:
        accept(layout, [whole], present)
    assert caught.value.hint == "resume with deepspeed.stage 0"


def test_a_scheduler_that_json_would_change_is_refused_by_name() -> None:
    """Numbers as keys would come back as texts, and MultiStepLR would never find its milestones again."""
    engine = DeepSpeedEngine()
    layout = stepped(engine, 1)
    engine.lr_scheduler = torch.optim.lr_scheduler.MultiStepLR(engine.optimizer, [3])
    with pytest.raises(WorkerFailed, match="MultiStepLR"):
        collect(layout, layout.holders())


def test_a_learned_loss_scale_is_kept_and_a_fixed_one_is_the_configurations() -> None:
    """Of a dynamic scaler the fields travel that both sides have; a fixed scale is neither written nor overwritten."""
    engine = DeepSpeedEngine()
    layout = stepped(engine, 1)
    holders = layout.holders()
    learned = {"cur_scale": 4096.0, "cur_iter": 9, "last_overflow_iter": 5, "cur_hysteresis": 2}
    layout.scaler = lambda: SimpleNamespace(dynamic=True, **learned)
    saved = through_json(collect(layout, holders))
    assert saved["loss_scaler"] == learned
    unfused = SimpleNamespace(dynamic_loss_scale=True, cur_scale=1.0, cur_iter=0, last_overflow_iter=-1)
    fixed = SimpleNamespace(dynamic=False, cur_scale=1.0)
    for scaler in (unfused, fixed):
        layout.scaler = lambda scaler=scaler: scaler
        apply(layout, holders, accept(layout, holders, saved), saved)
    assert (unfused.cur_scale, unfused.cur_iter, unfused.last_overflow_iter) == (4096.0, 9, 5)
    assert collect(layout, holders)["loss_scaler"] == {}
