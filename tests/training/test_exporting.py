"""Checkpoints in the forms of other programs: what `from_pretrained` and plain DeepSpeed read from them."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from orchestrator import storage
from orchestrator.domain.errors import Conflict, CorruptCheckpoint, NotFound, OrchestrateError, StorageError, UsageError
from orchestrator.training import exporting
from orchestrator.training.distributed_checkpoint import export_distributed
from orchestrator.training.exporting import export_deepspeed, export_model, open_source
from orchestrator.training.importing import read_deepspeed
from tests.training.gang import Run, job, launch, write_reviews
from tests.training.test_importing import assert_the_same, groups_of, run

Tensors = Mapping[tuple[str, str], torch.Tensor]


def raw(tensor: Any) -> bytes:
    content: bytes = tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    return content


def commit(
    store: storage.Store,
    parameters: Iterable[storage.Parameter],
    tensors: Tensors,
    scalars: Mapping[str, Any],
    *,
    step: int = 3,
    best: bool = False,
    layout: str = "ranges",
    files: Mapping[str, bytes] | None = None,
) -> storage.Listed:
    """A checkpoint of two ranks, each with one half of everything; files of the model are shared."""
    draft = store.draft(step, 1)
    draft.begin()
    parts: list[list[bytes]] = [[], []]
    fragments = []
    for (name, kind), tensor in tensors.items():
        flat = tensor.reshape(-1)
        for rank, (start, end) in enumerate([(0, len(flat) // 2), (len(flat) // 2, len(flat))]):
            if start < end:
                dtype = str(flat.dtype).removeprefix("torch.")
                offset = sum(map(len, parts[rank]))
                fragments.append(
                    storage.Fragment(name, kind, dtype, start, end, file=f"rank-{rank:05d}.bin", offset=offset)
                )
                parts[rank].append(raw(flat[start:end]))
    entries = [draft.write(f"rank-{rank:05d}.bin", part, large=True) for rank, part in enumerate(parts)]
    entries.append(draft.write("trainer.json", [json.dumps({"progress": {}, "engine": scalars}).encode()]))
    for name, content in (files or {}).items():
        shared = draft.write_shared([content])
        entries.append(storage.FileEntry(shared.path, shared.bytes, shared.sha256, shared.xxh3, True, f"model/{name}"))
    facts = storage.Manifest(
        global_step=step,
        samples_seen=18,
        world=storage.World(2),
        zero_stage=2,
        layout=layout,
        created_ns=step,
        covers_ns=step,
        attempt=1,
        best=best,
        parameters=tuple(parameters),
        fragments=tuple(fragments),
    )
    return draft.commit(facts, entries)


def causal(tied: bool) -> Any:
    """A small GPT-2 of transformers; the weights are the same at every call."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(1)
    config = GPT2Config(
        n_layer=2,
        n_head=2,
        n_embd=16,
        vocab_size=61,
        n_positions=16,
        tie_word_embeddings=tied,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config)


def save(store: storage.Store, model: Any, tmp_path: Path, **more: Any) -> storage.Listed:
    """A checkpoint of a model of transformers, as the built-in trainer stores it."""
    model.config.save_pretrained(tmp_path / "config")
    names: dict[int, str] = {}
    aliases: dict[str, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        first = names.setdefault(id(parameter), name)
        if first != name:
            aliases.setdefault(first, []).append(name)
    parameters = [
        storage.Parameter(
            name, tuple(p.shape), str(p.dtype).removeprefix("torch."), "trained", tuple(aliases.get(name, ()))
        )
        for name, p in model.named_parameters()
    ]
    masters = {(name, "master"): p.detach().float() for name, p in model.named_parameters()}
    files = {"config.json": (tmp_path / "config" / "config.json").read_bytes(), "tokenizer.json": b"{}"}
    return commit(store, parameters, masters, {}, files=files, **more)


@pytest.fixture
def store(tmp_path: Path) -> storage.Store:
    return storage.open_store(str(tmp_path / "checkpoints"))


def loaded(folder: Path) -> tuple[Any, dict[str, Any]]:
    from transformers import GPT2LMHeadModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found: Any = GPT2LMHeadModel.from_pretrained(folder, output_loading_info=True)
    model, info = found
    return model, info


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shard_bytes", [exporting.SHARD_BYTES, 5_000])
def test_transformers_loads_the_same_model(store: storage.Store, tmp_path: Path, tied: bool, shard_bytes: int) -> None:
    """`from_pretrained` finds every key, in one file or many, tied or not, and computes the same to the last bit."""
    model = causal(tied).eval()
    save(store, model, tmp_path)
    exported = export_model(open_source(store.uri), tmp_path / "model", shard_bytes=shard_bytes)
    assert exported.notes == ()
    files = sorted(path.name for path in (tmp_path / "model").glob("*.safetensors"))
    assert (len(files) == 1) == (shard_bytes == exporting.SHARD_BYTES)
    again, info = loaded(tmp_path / "model")
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids = torch.arange(12).reshape(1, 12)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, again.eval()(ids).logits)
    assert (tmp_path / "model" / "tokenizer.json").read_bytes() == b"{}"
    about = json.loads((tmp_path / "model" / exporting.MARK).read_text())
    assert (about["step"], about["format"]) == (3, "safetensors")


def test_safetensors_reads_what_is_written(store: storage.Store, tmp_path: Path) -> None:
    """The files are what the safetensors library reads, and bf16 is rounded as torch rounds it."""
    values = torch.tensor([1.0, 1.00390625, 1.01171875, -3.4e38, 3.4e38, float("inf"), float("nan"), 1e-40, 0.1, 7e-3])
    values = torch.cat([values, torch.randn(5_000, generator=torch.Generator().manual_seed(2))])
    count = torch.arange(3)
    parameters = [
        storage.Parameter("count", (3,), "int64", "buffer"),
        storage.Parameter("weight", (len(values), 1), "float32", "trained"),
        storage.Parameter("still", (2,), "bfloat16", "frozen"),
    ]
    still = torch.tensor([0.5, -2.0], dtype=torch.bfloat16)
    tensors = {("count", "buffer"): count, ("weight", "master"): values, ("still", "frozen"): still}
    commit(store, parameters, tensors, {})
    wanted = {
        None: (torch.float32, torch.bfloat16),
        "float32": (torch.float32, torch.float32),
        "bfloat16": (torch.bfloat16, torch.bfloat16),
    }
    for dtype, (of_weight, of_still) in wanted.items():
        exported = export_model(open_source(store.uri), tmp_path / str(dtype), dtype=dtype)
        assert exported.notes == ("there is no config.json in it: the state holds none",)
        found = load_file(tmp_path / str(dtype) / "model.safetensors")
        assert torch.equal(found["count"], count)
        assert torch.equal(found["still"], still.to(of_still))
        assert found["weight"].dtype == of_weight
        assert found["weight"].shape == (len(values), 1)
        assert torch.equal(found["weight"].view(-1).nan_to_num(nan=7.0), values.to(of_weight).nan_to_num(nan=7.0))


def test_the_configuration_names_the_type_that_was_written(store: storage.Store, tmp_path: Path) -> None:
    """A model that is exported in bf16 is loaded in bf16."""
    save(store, causal(True), tmp_path)
    export_model(open_source(store.uri), tmp_path / "model", dtype="bfloat16")
    again, _ = loaded(tmp_path / "model")
    assert {p.dtype for p in again.parameters()} == {torch.bfloat16}


def test_the_wanted_checkpoint_is_taken(store: storage.Store, tmp_path: Path) -> None:
    """latest, best, a step, and the folder of one checkpoint mean what they say; what is not there is named."""
    model = causal(True)
    for step in (3, 6, 9):
        save(store, model, tmp_path, step=step, best=step == 6)
    assert [open_source(store.uri, which).step for which in ("latest", "best", "3")] == [9, 6, 3]
    assert open_source(f"{store.uri}/step-00000006").step == 6
    with pytest.raises(NotFound, match="no checkpoint of step 4; there are 9, 6, 3"):
        open_source(store.uri, "4")
    with pytest.raises(UsageError, match="is no step"):
        open_source(store.uri, "newest")
    with pytest.raises(NotFound, match="there is no folder"):
        open_source(str(tmp_path / "nowhere"))
    with pytest.raises(NotFound, match="has no checkpoint"):
        open_source(str(tmp_path / "config"))


def test_the_older_layout_is_read_too(store: storage.Store, tmp_path: Path) -> None:
    """A checkpoint that holds a folder of DeepSpeed, as this program wrote them first, is exported like any other."""
    model = causal(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.arange(8).reshape(1, 8), labels=torch.arange(8).reshape(1, 8)).loss.backward()
    optimizer.step()
    counters = {"global_steps": 1, "global_samples": 1, "skipped_steps": 0, "dp_world_size": 2, "mp_world_size": 1}
    state = {
        "module": model.state_dict(),
        "buffer_names": [],
        "optimizer": optimizer.state_dict(),
        "ds_version": "0.19.8",
    }
    file = io.BytesIO()
    torch.save({**state, **counters, "shared_params": None}, file)
    draft = store.draft(1, 1)
    draft.begin()
    entries = [draft.write("deepspeed/mp_rank_00_model_states.pt", [file.getvalue()])]
    facts = storage.Manifest(1, 1, storage.World(2), 0, "deepspeed", 1, 1, 1)
    draft.commit(facts, entries)
    source = open_source(store.uri)
    exported = export_model(source, tmp_path / "model")
    assert len(exported.notes) == 1
    model.config.save_pretrained(tmp_path / "model")
    again, info = loaded(tmp_path / "model")
    assert not info["missing_keys"]
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters(), strict=True))
    assert source.scalars["optimizer"]["steps"] == 1


def test_states_of_a_function_are_refused(store: storage.Store, tmp_path: Path) -> None:
    """What a user's own function saved is not mistaken for a model."""
    save(store, causal(True), tmp_path, layout="context")
    with pytest.raises(UsageError, match="a function of your own"):
        open_source(store.uri)


def test_only_an_earlier_export_is_replaced(store: storage.Store, tmp_path: Path) -> None:
    """An occupied folder is refused; with force an earlier export is replaced, and a folder of somebody else is not."""
    save(store, causal(True), tmp_path)
    source = open_source(store.uri)
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    (theirs / "photos").mkdir(parents=True)
    mine.mkdir()
    export_model(source, mine)
    (mine / "old").touch()
    for folder in (mine, theirs):
        with pytest.raises(Conflict, match="is there already"):
            export_model(source, folder)
    with pytest.raises(Conflict, match="not an earlier export"):
        export_model(source, theirs, force=True)
    export_model(source, mine, force=True)
    assert not (mine / "old").exists()
    assert (theirs / "photos").is_dir()


def test_a_damaged_checkpoint_leaves_no_export(store: storage.Store, tmp_path: Path) -> None:
    """A flipped bit is named, the target is as it was, and nothing is left beside it."""
    listed = save(store, causal(True), tmp_path)
    file = Path(listed.uri, "rank-00001.bin")
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)
    target = tmp_path / "out" / "model"
    with closing(open_source(store.uri)) as source, pytest.raises(CorruptCheckpoint, match="rank-00001"):
        export_model(source, target)
    assert list(target.parent.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_told(store: storage.Store, tmp_path: Path) -> None:
    """A file where a folder is needed is a StorageError that names the place."""
    save(store, causal(True), tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot write the export to"):
        export_model(open_source(store.uri), tmp_path / "file" / "model")


OUT: dict[str, tuple[str, int, int]] = {
    f"{dtype} to {stage} of {size}": (dtype, stage, size)
    for dtype, size in (("fp32", 2), ("bf16", 3))
    for stage in (0, 1, 2, 3)
}


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_plain_deepspeed_opens_the_export_and_goes_on(tmp_path: Path) -> None:
    """`engine.load_checkpoint` of any stage and another size holds the same state and has the same next three losses."""
    run([{"name": dtype, "stage": 3, "dtype": dtype} for dtype in ("fp32", "bf16")], tmp_path, 1)
    cases: dict[int, list[dict[str, Any]]] = {2: [], 3: []}
    for dtype in ("fp32", "bf16"):
        folder = read_deepspeed(tmp_path / dtype)
        tensors = {}
        for parameter in folder.parameters:
            for kind in folder.kinds(parameter.name):
                room: Any = torch.empty(parameter.elements, dtype=getattr(torch, folder.dtype(parameter.name, kind)))
                out = memoryview(room.view(torch.uint8).numpy())
                folder.read_into(parameter.name, kind, 0, parameter.elements, out)
                tensors[parameter.name, kind] = room
        store = storage.open_store(str(tmp_path / f"checkpoints-{dtype}"))
        commit(store, folder.parameters, tensors, folder.scalars())
    for name, (dtype, stage, size) in OUT.items():
        source = open_source(str(tmp_path / f"checkpoints-{dtype}"))
        exported = export_deepspeed(source, tmp_path / "exports" / name, world_size=size, stage=stage)
        source.close()
        cases[size].append({"name": name, "stage": stage, "dtype": dtype, "load": str(exported.folder)})
    for size, of_size in cases.items():
        run(of_size, tmp_path / "opened", size)
    for name, (dtype, _, _) in OUT.items():
        before = torch.load(tmp_path / dtype / "expected.pt")
        assert_the_same(before, torch.load(tmp_path / "opened" / name / "expected.pt"), name)
        old = json.loads((tmp_path / dtype / "counters.json").read_text())
        new = json.loads((tmp_path / "opened" / name / "counters.json").read_text())
        assert (new["global_steps"], new["global_samples"], new["lr"]) == (3, 18, old["lr"])
        assert new["losses"] == pytest.approx(old["losses"], rel=1e-6 if dtype == "fp32" else 1e-3), name
        again = read_deepspeed(tmp_path / "exports" / name, groups=groups_of(before))
        assert again.parameters == read_deepspeed(tmp_path / dtype).parameters


def test_torch_loads_the_distributed_checkpoint(store: storage.Store, tmp_path: Path) -> None:
    """`torch.distributed.checkpoint.load` fills a model and an AdamW of another program, through torch's own names."""
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
    from torch.distributed.checkpoint.state_dict_loader import load

    def model_and_optimizer() -> tuple[Any, Any]:
        model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 2))
        groups: list[dict[str, Any]] = [
            {"params": list(model[0].parameters()), "weight_decay": 0.5},
            {"params": list(model[2].parameters())},
        ]
        return model, torch.optim.AdamW(groups, lr=0.25)

    torch.manual_seed(1)
    model, optimizer = model_and_optimizer()
    for _ in range(3):
        model(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()
    names = {id(p): name for name, p in model.named_parameters()}
    parameters, tensors = [], {}
    for name, p in model.named_parameters():
        trained = any(p is one for group in optimizer.param_groups for one in group["params"])
        parameters.append(storage.Parameter(name, tuple(p.shape), "float32", "trained" if trained else "frozen"))
        tensors[name, "master" if trained else "frozen"] = p.detach()
        tensors |= {(name, key): value for key, value in optimizer.state[p].items() if key != "step"}
    for name, held in model.named_buffers():
        parameters.append(storage.Parameter(name, tuple(held.shape), str(held.dtype).removeprefix("torch."), "buffer"))
        tensors[name, "buffer"] = held
    groups = [
        {
            "members": [names[id(p)] for p in group["params"]],
            "kinds": ["exp_avg", "exp_avg_sq", "master"],
            "values": {key: value for key, value in group.items() if key != "params"},
        }
        for group in optimizer.param_groups
    ]
    commit(store, parameters, tensors, {"optimizer": {"groups": groups, "steps": 3, "steps_of": {}}})
    with closing(open_source(store.uri)) as source:
        exported = export_distributed(source, tmp_path / "out")
    other, another = model_and_optimizer()
    for group in another.param_groups:
        group["lr"] = 9.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        weights, state = get_state_dict(other, another)
        nested: dict[str, Any] = {"model": weights, "optimizer": state}
        load(nested, checkpoint_id=exported.folder, no_dist=True)
        set_state_dict(other, another, model_state_dict=nested["model"], optim_state_dict=nested["optimizer"])
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())
    assert [group["lr"] for group in another.param_groups] == [0.25, 0.25]
    assert [group["weight_decay"] for group in another.param_groups] == [0.5, 0.01]
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        before, after = optimizer.state[p], another.state[q]
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)


def test_weights_of_a_distributed_checkpoint_are_of_the_wanted_type(store: storage.Store, tmp_path: Path) -> None:
    """`dtype` rounds weights, never the optimizer's state."""
    parameters = [storage.Parameter("a", (2, 3), "float32", "trained")]
    tensors = {("a", kind): torch.rand(2, 3) for kind in ("master", "exp_avg")}
    groups = [{"members": ["a"], "kinds": ["exp_avg", "master"], "values": {"lr": 0.5}}]
    commit(store, parameters, tensors, {"optimizer": {"groups": groups, "steps": None, "steps_of": {}}})
    with closing(open_source(store.uri)) as source:
        export_distributed(source, tmp_path / "out", dtype="bfloat16")
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp_to_torch_save(tmp_path / "out", tmp_path / "one.pt")
    found = torch.load(tmp_path / "one.pt", weights_only=False)
    assert torch.equal(found["model"]["a"], tensors["a", "master"].bfloat16())
    assert torch.equal(found["optimizer"]["state"]["a"]["exp_avg"], tensors["a", "exp_avg"])
    assert found["optimizer"]["param_groups"][0]["lr"] == 0.5


def test_what_zero_cannot_hold_is_refused_by_name(store: storage.Store, tmp_path: Path) -> None:
    """Unequal step numbers within a group, and precisions that DeepSpeed folders are not written in, are refused."""
    parameters = [storage.Parameter(name, (4,), "float16", "trained") for name in ("a", "b")]
    tensors = {(name, kind): torch.ones(4) for name in ("a", "b") for kind in ("master", "exp_avg", "exp_avg_sq")}
    scalars = {
        "optimizer": {
            "steps": 3,
            "steps_of": {"b": 2},
            "groups": [{"kinds": ["master", "exp_avg", "exp_avg_sq"], "members": ["a", "b"], "values": {"lr": 0.1}}],
        },
        "engine": {"global_steps": 3, "global_samples": 18, "skipped_steps": 0, "micro_steps": 3, "accumulation": 1},
        "lr_scheduler": None,
        "loss_scaler": {},
    }
    commit(store, parameters, tensors, scalars)

    def refused(**more: Any) -> str:
        with pytest.raises(OrchestrateError) as caught:
            export_deepspeed(open_source(store.uri), tmp_path / "out", world_size=1, **more)
        return str(caught.value)

    assert "float16" in refused(stage=0)
    assert "--stage 0" in refused(stage=1, dtype="float32")
    export_deepspeed(open_source(store.uri), tmp_path / "out", world_size=1, stage=0, dtype="float32")


@pytest.mark.integration
@pytest.mark.timeout(600)
def test_a_run_goes_out_to_deepspeed_and_comes_back(tmp_path: Path) -> None:
    """A job's checkpoint, exported to DeepSpeed for one size and imported by a job of another, goes on with the same losses;
    its model folder is the one that the job itself would have written."""
    write_reviews(tmp_path / "reviews.csv")
    whole = Run(tmp_path / "whole", job(checkpoint__every=6, checkpoint__keepBest=False), tmp_path)
    assert launch([whole]).codes == [0, 0]
    place = str(whole.folder / "checkpoints")
    with closing(open_source(place, "6")) as source:
        export_deepspeed(source, tmp_path / "out", world_size=3, stage=1)
    wanted = {"uri": "out", "format": "DeepSpeed"}
    again = job(deepspeed__stage=3, checkpoint__importFrom=wanted, checkpoint__keepBest=False)
    second = Run(tmp_path / "second", again, tmp_path)
    launched = launch([second])
    assert launched.codes == [0, 0], launched.output
    assert second.outcome()["result"]["outcome"] == "succeeded", second.outcome()
    assert sorted(second.losses()) == [7, 8]
    for step, loss in second.losses().items():
        assert loss == pytest.approx(whole.losses()[step], rel=1e-6)
    with closing(open_source(place)) as source:
        export_model(source, tmp_path / "model")
    ours, theirs = tmp_path / "model" / "model.safetensors", whole.folder / "model" / "model.safetensors"
    found, written = load_file(ours), load_file(theirs)
    assert written.keys() <= found.keys()
    assert all(torch.equal(tensor, found[name]) for name, tensor in written.items())
    assert (tmp_path / "model" / "tokenizer.json").is_file()
