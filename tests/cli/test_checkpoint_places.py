"""Checkpoints that are named by their place instead of a job: list, verify, export, prune, with no controller at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator import storage
from tests.cli.conftest import Cli, process
from tests.cli.fake_controller import FakeController, resource

DAY_NS = 86_400 * 10**9


def save(place: Path, step: int, *, best: bool = False, created_ns: int = 0) -> storage.Listed:
    """A checkpoint of one weight of four numbers."""
    draft = storage.open_store(str(place)).draft(step, 1)
    draft.begin()
    group = {"kinds": ["master"], "members": ["w"], "values": {"lr": 0.1}}
    counters = {
        "global_steps": step,
        "global_samples": step,
        "skipped_steps": 0,
        "micro_steps": step,
        "accumulation": 1,
    }
    optimizer = {"steps": step, "steps_of": {}, "groups": [group]}
    scalars = {"optimizer": optimizer, "engine": counters, "lr_scheduler": None, "loss_scaler": {}}
    entries = [
        draft.write("rank-00000.bin", [b"\x00\x00\x80\x3f" * 4], large=True),
        draft.write("trainer.json", [json.dumps({"engine": scalars}).encode()]),
    ]
    facts = storage.Manifest(
        global_step=step,
        samples_seen=step,
        world=storage.World(1),
        zero_stage=1,
        layout="ranges",
        created_ns=created_ns,
        covers_ns=created_ns,
        attempt=1,
        best=best,
        parameters=(storage.Parameter("w", (2, 2), "float32", "trained"),),
        fragments=(storage.Fragment("w", "master", "float32", 0, 4, "rank-00000.bin", 0),),
    )
    return draft.commit(facts, entries)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Five checkpoints; that of step 2 is the best."""
    for step in range(1, 6):
        save(tmp_path / "runs", step, best=step == 2, created_ns=step * DAY_NS // 2)
    return tmp_path / "runs"


def steps(place: Path) -> list[int]:
    return [listed.step for listed in storage.open_store(str(place)).list()]


def test_a_place_is_listed_and_verified_without_a_controller(cli: Cli, place: Path) -> None:
    """A path is enough, absolute or relative; a damaged checkpoint is found by reading."""
    assert [item["step"] for item in json.loads(cli("checkpoint", "list", "./runs", "-o", "json").out)["items"]] == [
        5,
        4,
        3,
        2,
        1,
    ]
    assert cli("checkpoint", "verify", str(place)).code == 0
    gone = cli("checkpoint", "list", "./run")
    assert (gone.code, "there is no folder" in gone.err) == (3, True)
    (place / "step-00000004" / "rank-00000.bin").write_bytes(b"\x00\x00\x80\x3e" * 4)
    assert cli("checkpoint", "list", str(place)).code == 0
    run = cli("checkpoint", "verify", f"file://{place}")
    assert (run.code, "no: rank-00000.bin" in run.out) == (1, True)


def test_prune_says_what_it_would_delete_and_then_does(cli: Cli, place: Path) -> None:
    """A dry run deletes nothing and names the same checkpoints; the best and one a period stay when they are asked for."""
    dry = cli("checkpoint", "prune", str(place), "--keep-last", "1", "--dry-run", "-o", "name")
    assert dry.err == "3 checkpoints would be deleted.\n"
    assert [line.rpartition("/")[2] for line in dry.out.split()] == ["step-00000004", "step-00000003", "step-00000001"]
    assert steps(place) == [5, 4, 3, 2, 1]
    daily = cli("checkpoint", "prune", str(place), "--keep-last", "1", "--keep-every", "1d")
    assert daily.err == "1 checkpoint deleted.\n"
    assert steps(place) == [5, 3, 2, 1]
    assert cli("checkpoint", "prune", str(place), "--keep-last", "1").code == 0
    assert steps(place) == [5, 2]
    assert cli("checkpoint", "prune", str(place), "--keep-last", "1", "--no-keep-best").code == 0
    assert steps(place) == [5]
    nothing = cli("checkpoint", "prune", str(place), "--keep-last", "1")
    assert (nothing.code, nothing.out, nothing.err) == (0, "", "0 checkpoints deleted.\n")
    assert cli("checkpoint", "prune", str(place)).code == 2
    assert cli("checkpoint", "prune", str(place), "--keep-last", "0").code == 2


def test_the_newest_whole_checkpoint_is_never_pruned(cli: Cli, place: Path) -> None:
    """When the newest is damaged, the newest of those that are whole stays."""
    (place / "step-00000005" / "rank-00000.bin").write_bytes(b"\x00\x00\x80\x3e" * 4)
    assert cli("checkpoint", "prune", str(place), "--keep-last", "1", "--no-keep-best").code == 0
    assert steps(place) == [5, 4]


def test_export_writes_a_model_folder(cli: Cli, place: Path, tmp_path: Path) -> None:
    """The wanted step is written as safetensors, its place is told in every form, and an occupied folder is refused."""
    run = cli("checkpoint", "export", str(place), "--step", "best", "--to", "out", "-o", "json")
    assert run.code == 0, run.err
    document = json.loads(run.out)
    assert (document["step"], document["format"], document["folder"]) == (2, "safetensors", str(tmp_path / "out"))
    content = (tmp_path / "out" / "model.safetensors").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert header["w"] == {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
    assert content[-16:] == b"\x00\x00\x80\x3f" * 4
    again = cli("checkpoint", "export", str(place), "--to", "out")
    assert (again.code, "--force" in again.err) == (4, True)
    forced = cli("checkpoint", "export", str(place), "--to", "out", "--force", "--dtype", "bf16", "-o", "name")
    assert forced.out == f"{tmp_path / 'out'}\n"
    assert (tmp_path / "out" / "model.safetensors").read_bytes()[-8:] == b"\x80\x3f" * 4


@pytest.mark.integration
def test_export_writes_a_folder_for_deepspeed(environ: dict[str, str], place: Path, tmp_path: Path) -> None:
    """One file a rank for the model and one for the optimizer; stdout holds the answer and nothing of DeepSpeed's log."""
    argv = [
        "checkpoint",
        "export",
        str(place),
        "--to",
        "out",
        "--format",
        "deepspeed",
        "--world-size",
        "2",
        "--stage",
        "3",
    ]
    done = process(*argv, "-o", "json", cwd=tmp_path, environ=environ)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["files"] == 6
    assert (tmp_path / "out" / "latest").read_text() == "global_step5"
    names = sorted(path.name for path in (tmp_path / "out" / "global_step5").iterdir())
    kinds = ("model_states", "optim_states")
    assert names == [f"zero_pp_rank_{rank}_mp_rank_00_{kind}.pt" for rank in (0, 1) for kind in kinds]


WRONG: dict[str, list[str]] = {
    "there is no folder": ["./nowhere", "--to", "out"],
    "has no checkpoint of step 7; there are 5, 4, 3, 2, 1": ["./runs", "--to", "out", "--step", "7"],
    "--stage means nothing for safetensors": ["./runs", "--to", "out", "--stage", "1"],
    "--shard-size means nothing for deepspeed": [
        "./runs",
        "--to",
        "out",
        "--format",
        "deepspeed",
        "--shard-size",
        "1G",
    ],
    "is not a whole number from 1 up": ["./runs", "--to", "out", "--format", "deepspeed", "--world-size", "0"],
    "is not a size": ["./runs", "--to", "out", "--shard-size", "big"],
}


@pytest.mark.parametrize("said", WRONG)
def test_a_wrong_export_says_what_to_do(cli: Cli, place: Path, said: str) -> None:
    """Each mistake is named, nothing is written."""
    run = cli("checkpoint", "export", *WRONG[said])
    assert run.code in (2, 3)
    assert said in run.err
    assert not (place.parent / "out").exists()


def test_a_jobs_checkpoints_are_exported_from_where_they_lie(
    cli: Cli, controller: FakeController, place: Path, tmp_path: Path
) -> None:
    """For a job the controller tells where its checkpoints are; a job without any is told so."""
    controller.add(resource())
    none = cli("checkpoint", "export", "sentiment", "--to", "out")
    assert (none.code, "has no checkpoint yet" in none.err) == (3, True)
    items: list[dict[str, Any]] = json.loads(cli("checkpoint", "list", str(place), "-o", "json").out)["items"]
    controller.checkpoints = items
    run = cli("checkpoint", "export", "sentiment", "--step", "3", "--to", "out", "-o", "json")
    assert (run.code, json.loads(run.out)["step"]) == (0, 3)
