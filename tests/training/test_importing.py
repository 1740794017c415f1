"""Folders of DeepSpeed's own `save_checkpoint`, made by real gangs, read range by range and taken up by other worlds."""

from __future__ import annotations

import json
import pickle
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.training.errors import WorkerFailed
from orchestrator.training.importing import DeepSpeedFolder, is_deepspeed, read_deepspeed
from tests.training.gang import environment, free_port

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

SCRIPT = Path(__file__).with_name("importing_rank.py")
ROUND_ROBIN = {"zero": {"round_robin_gradients": True}}
SAVED: dict[str, tuple[int, dict[str, Any]]] = {
    "0 of 2": (2, {"stage": 0, "dtype": "fp32"}),
    "bf16 0 of 2": (2, {"stage": 0, "dtype": "bf16"}),
    "aligned 1 of 2": (2, {"stage": 1, "dtype": "fp32", "zero": {"parameter_alignment": True}}),
    "full sums bf16 1 of 2": (2, {"stage": 1, "dtype": "bf16", "more": {"data_types": {"grad_accum_dtype": "fp32"}}}),
    "2 of 2": (2, {"stage": 2, "dtype": "fp32"}),
    "round robin 2 of 2": (2, {"stage": 2, "dtype": "fp32", **ROUND_ROBIN}),
    "3 in sub-groups of 2": (2, {"stage": 3, "dtype": "fp32", "zero": {"sub_group_size": 3000}}),
    "offload 3 of 2": (2, {"stage": 3, "dtype": "fp32", "zero": {"offload_optimizer": {"device": "cpu"}}}),
    "2 of 3": (3, {"stage": 2, "dtype": "fp32"}),
    "bf16 2 of 3": (3, {"stage": 2, "dtype": "bf16"}),
    "round robin 2 of 3": (3, {"stage": 2, "dtype": "fp32", **ROUND_ROBIN}),
    "bf16 3 of 3": (3, {"stage": 3, "dtype": "bf16"}),
}
"""Name: size and setup of the run that saved."""
TAKEN: dict[str, tuple[str, int, int]] = {
    "0 of 2 by 3 of 3": ("0 of 2", 3, 3),
    "3 in sub-groups of 2 by 0 of 3": ("3 in sub-groups of 2", 0, 3),
    "round robin 2 of 3 by 1 of 2": ("round robin 2 of 3", 1, 2),
    "bf16 2 of 3 by 3 of 2": ("bf16 2 of 3", 3, 2),
    "full sums bf16 1 of 2 by 2 of 3": ("full sums bf16 1 of 2", 2, 3),
}
"""Name: what is taken up, by which stage, by how many ranks."""


def run(cases: list[dict[str, Any]], out: Path, world_size: int) -> None:
    """Run the cases in one gang; fails with the gang's output."""
    out.mkdir(parents=True, exist_ok=True)
    plan = out / f"plan-{world_size}.json"
    plan.write_text(json.dumps({"cases": cases, "out": str(out)}))
    port = str(free_port())
    with (out / "log").open("w+") as log:
        processes = [
            subprocess.Popen(
                [sys.executable, str(SCRIPT), str(plan)],
                env=environment(
                    RANK=str(rank),
                    LOCAL_RANK=str(rank),
                    WORLD_SIZE=str(world_size),
                    LOCAL_WORLD_SIZE=str(world_size),
                    MASTER_ADDR="127.0.0.1",
                    MASTER_PORT=port,
                ),
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            for rank in range(world_size)
        ]
        try:
            codes = [process.wait(300) for process in processes]
        finally:
            for process in processes:
                process.kill()
                process.wait()
        log.seek(0)
        assert codes == [0] * world_size, log.read()


def groups_of(expected: dict[str, dict[str, Any]]) -> list[list[str]]:
    """Names by param group, as a job knows them."""
    weights, trained = expected["weight"], expected["master"]
    return [
        sorted(name for name in trained if weights[name].ndim > 1),
        sorted(name for name in trained if weights[name].ndim <= 1),
    ]


def values(source: DeepSpeedFolder, name: str, kind: str, cuts: list[int]) -> Any:
    """The whole of one kind, read in slices that end at `cuts`."""
    dtype = getattr(torch, source.dtype(name, kind))
    found: Any = torch.empty(cuts[-1], dtype=dtype)
    for start, end in zip([0, *cuts], cuts, strict=False):
        source.read_into(name, kind, start, end, memoryview(found[start:end].view(torch.uint8).numpy()))
    return found


def assert_the_same(before: dict[str, dict[str, Any]], after: dict[str, dict[str, Any]], name: str) -> None:
    """What a live engine held, and what one that took it up holds, are equal to the last bit."""
    for kind, tensors in after.items():
        wanted = before["weight" if kind == "frozen" else kind]
        assert tensors.keys() == (wanted.keys() - before["master"].keys() if kind == "frozen" else wanted.keys())
        for parameter, tensor in tensors.items():
            assert torch.equal(tensor, wanted[parameter]), (name, kind, parameter)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every folder of SAVED, with what the live engines held beside it."""
    out = tmp_path_factory.mktemp("saved")
    for world_size in (2, 3):
        run([{"name": name, **case} for name, (size, case) in SAVED.items() if size == world_size], out, world_size)
    return out


@pytest.mark.parametrize("name", SAVED)
def test_every_range_is_what_the_live_engine_held(saved: Path, name: str) -> None:
    """Masters, moments, frozen weights and buffers of every stage, size and layout come out bit for bit, in any slices."""
    expected = torch.load(saved / name / "expected.pt")
    source = read_deepspeed(saved / name, groups=groups_of(expected))
    chance = random.Random(3)
    roles = {parameter.name: parameter.role for parameter in source.parameters}
    assert set(roles) == set(expected["weight"]) | set(expected["buffer"])
    for parameter in source.parameters:
        kinds = {"trained": {"master", "exp_avg", "exp_avg_sq"}, "frozen": {"frozen"}, "buffer": {"buffer"}}
        assert source.kinds(parameter.name) == kinds[parameter.role]
        for kind in source.kinds(parameter.name):
            whole = expected["weight" if kind == "frozen" else kind][parameter.name]
            assert tuple(whole.shape) == parameter.shape
            cuts = sorted({chance.randint(1, whole.numel()) for _ in range(3)} | {whole.numel()})
            assert torch.equal(values(source, parameter.name, kind, cuts), whole.reshape(-1)), (parameter.name, kind)
    assert [parameter.aliases for parameter in source.parameters if parameter.aliases] == [("lm_head.weight",)]
    assert roles["transformer.wpe.weight"] == "frozen"
    scalars = source.scalars()
    assert [group["members"] for group in scalars["optimizer"]["groups"]] == groups_of(expected)
    # DeepSpeed itself takes a step when it makes the optimizer of stage 0 in bf16.
    assert scalars["optimizer"]["steps"] == (4 if name == "bf16 0 of 2" else 3)
    assert (source.global_steps, source.global_samples) == (3, 18)
    json.dumps(scalars)


def test_other_worlds_take_it_up_and_go_on(saved: Path, tmp_path: Path) -> None:
    """Engines of other stages, sizes and param groups, filled in process, hold the same state and have the same next three
    losses; one that trains other parameters refuses, on every rank."""
    for world_size in (2, 3):
        cases = [
            {
                "name": name,
                "stage": stage,
                "dtype": SAVED[origin][1]["dtype"],
                "take_up": str(saved / origin),
                "one_group": name.startswith("0 of 2"),
            }
            for name, (origin, stage, size) in TAKEN.items()
            if size == world_size
        ]
        cases.append({**cases[0], "name": f"other of {world_size}", "unfrozen": True})
        run(cases, tmp_path, world_size)
    for name, (origin, _, _) in TAKEN.items():
        before = torch.load(saved / origin / "expected.pt")
        after = torch.load(tmp_path / name / "expected.pt")
        assert_the_same(before, after, name)
        old = json.loads((saved / origin / "counters.json").read_text())
        new = json.loads((tmp_path / name / "counters.json").read_text())
        assert (new["global_steps"], new["global_samples"], set(new["lr"])) == (3, 18, set(old["lr"]))
        gap = 1e-3 if "bf16" in name else 1e-6
        if name.startswith("0 of 2"):  # one group has one weight decay
            gap = 1e-3
        assert new["losses"] == pytest.approx(old["losses"], rel=gap), name
    for world_size in (2, 3):
        for rank in range(world_size):
            said = (tmp_path / f"other of {world_size}" / f"refused-{rank}").read_text()
            assert "transformer.wpe.weight is frozen in the checkpoint and trained in the model" in said


@pytest.mark.parametrize("name", ["2 of 3", "bf16 3 of 3"])
def test_deepspeeds_own_converter_says_the_same(saved: Path, name: str, tmp_path: Path) -> None:
    """Where DeepSpeed's offline converter is right, it finds the same values."""
    code = "import sys; from deepspeed.checkpoint.ds_to_universal import main, parse_arguments; main(parse_arguments())"
    arguments = ["--input_folder", str(saved / name / "global_step3"), "--output_folder", str(tmp_path / "universal")]
    extra = ["--num_extract_workers", "1", "--num_merge_workers", "1", "--inject_missing_state"]
    command = [sys.executable, "-c", code, *arguments, *extra]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    source = read_deepspeed(saved / name)
    for parameter in source.parameters:
        if parameter.role != "trained":
            continue
        for kind, file in {"master": "fp32", "exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq"}.items():
            theirs = torch.load(tmp_path / "universal" / "zero" / parameter.name / f"{file}.pt", weights_only=False)
            whole = theirs["param"] if isinstance(theirs, dict) else theirs
            ours = values(source, parameter.name, kind, [parameter.elements])
            assert torch.equal(whole.reshape(-1), ours), (parameter.name, kind)


def test_the_folder_of_a_tag_is_read_as_well(saved: Path) -> None:
    """A folder is known by its `latest`, by a tag that is named, and as the folder of a tag itself."""
    folder = saved / "2 of 2"
    for source in (
        read_deepspeed(folder),
        read_deepspeed(folder, "global_step3"),
        read_deepspeed(folder / "global_step3"),
    ):
        assert source.place == folder / "global_step3"
    assert is_deepspeed(folder)
    assert is_deepspeed(folder / "global_step3")
    assert not is_deepspeed(folder.parent)


def refused(folder: Path, tag: str | None = None, reason: str = "ConfigInvalid", **more: Any) -> str:
    """What is said when a folder is not read."""
    with pytest.raises(WorkerFailed) as caught:
        read_deepspeed(folder, tag, **more)
    assert caught.value.reason == reason
    return str(caught.value)


def test_what_stage_0_leaves_open_is_refused_outside_a_job(saved: Path, tmp_path: Path) -> None:
    """Stage 0 names no optimizer state. Where shapes leave one reading it is taken, else the job's groups are needed."""
    expected = torch.load(saved / "0 of 2" / "expected.pt")
    first, second = groups_of(expected)
    assert (
        read_deepspeed(saved / "0 of 2").scalars() == read_deepspeed(saved / "0 of 2", groups=[first, second]).scalars()
    )
    assert (
        read_deepspeed(saved / "0 of 2", groups=[[*second, *first]]).scalars()
        == read_deepspeed(saved / "0 of 2").scalars()
    )
    assert "has no parameter nobody" in refused(saved / "0 of 2", groups=[["nobody"], second])
    shutil.copytree(saved / "0 of 2", tmp_path / "copy")
    model = tmp_path / "copy" / "global_step3" / "mp_rank_00_model_states.pt"
    state = torch.load(model, weights_only=False)
    whole = state["optimizer"]["param_groups"].pop()
    numbers = whole["params"]
    state["optimizer"]["param_groups"] += [{**whole, "params": numbers[:7]}, {**whole, "params": numbers[7:]}]
    torch.save(state, model)
    assert "does not say which of" in refused(tmp_path / "copy")
    assert "does not say which of" in refused(tmp_path / "copy", groups=[first, second])
    order = [name for name in expected["master"] if name in second]
    source = read_deepspeed(tmp_path / "copy", groups=[first, order[:7], order[7:]])
    for name in order:
        wanted = expected["exp_avg"][name]
        assert torch.equal(values(source, name, "exp_avg", [wanted.numel()]), wanted.reshape(-1))


def test_folders_that_are_none_are_refused_with_a_way_out(saved: Path, tmp_path: Path) -> None:
    """No folder, no tag, no DeepSpeed, a lost rank, a torn file, a foreign version: each is named."""
    assert "there is no folder" in refused(tmp_path / "nowhere")
    assert "not a folder of DeepSpeed" in refused(tmp_path)
    assert "has no tag 'later'" in refused(saved / "2 of 2", "later")
    copy = tmp_path / "copy"
    shutil.copytree(saved / "2 of 2", copy)
    (copy / "latest").unlink()
    assert "name a tag: global_step3" in refused(copy)
    tag = copy / "global_step3"
    optimizer = tag / "zero_pp_rank_1_mp_rank_00_optim_states.pt"
    content = optimizer.read_bytes()
    optimizer.write_bytes(content[: len(content) // 2])
    assert "is not whole: " in refused(tag)
    optimizer.unlink()
    assert "written by 2 ranks and has the optimizer state of 1" in refused(tag)
    (tag / "layer_00-model_states.pt").touch()
    assert "pipeline parallelism" in refused(tag)
    (tag / "layer_00-model_states.pt").unlink()
    model = tag / "mp_rank_00_model_states.pt"
    state = torch.load(model, weights_only=False)
    torch.save({**state, "ds_version": "0.12.3"}, model)
    assert "DeepSpeed 0.12.3" in refused(tag)


class Evil:
    """Runs something when it is unpickled without care."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.place,))


def test_a_pickle_that_runs_code_is_refused_and_not_run(saved: Path, tmp_path: Path) -> None:
    """A folder whose pickle names a function is refused, and the function is not called."""
    shutil.copytree(saved / "2 of 2", tmp_path / "copy")
    model = tmp_path / "copy" / "global_step3" / "mp_rank_00_model_states.pt"
    state = torch.load(model, weights_only=False)
    mark = tmp_path / "ran"
    torch.save({**state, "note": Evil(mark)}, model)
    assert "not safe to open" in refused(tmp_path / "copy")
    assert not mark.exists()
    pickle.loads(pickle.dumps(Evil(mark)))  # noqa: S301 - shows that it would have run
    assert mark.exists()


def test_a_layout_that_is_not_as_expected_is_refused_when_read(saved: Path, tmp_path: Path) -> None:
    """A master that is not what the folder's weight says is an error, never a silently wrong weight."""
    shutil.copytree(saved / "2 of 2", tmp_path / "copy")
    model = tmp_path / "copy" / "global_step3" / "mp_rank_00_model_states.pt"
    state = torch.load(model, weights_only=False)
    first = state["param_shapes"][0]
    name = next(iter(first))
    first.move_to_end(name)
    torch.save(state, model)
    source = read_deepspeed(tmp_path / "copy")
    with pytest.raises(WorkerFailed, match="not what its weight says"):
        values(source, name, "master", [source.parameters[0].elements])
