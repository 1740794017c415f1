"""`orchestrate simulate`: what it prints, draws and refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Cli


def trace(path: Path, **metadata: Any) -> Path:
    """72 hours in ticks of ten minutes: up for five hours, down for one."""
    values = [int(tick % 36 < 30) for tick in range(72 * 6)]
    path.write_text(json.dumps({"metadata": {"gap_seconds": 600, **metadata}, "data": values}))
    return path


def test_runs_are_told_as_json(cli: Cli, tmp_path: Path) -> None:
    """One run a start, ratio and policy; with all the fields; amounts follow from the segments."""
    trace(tmp_path / "us-east-1.json")
    found = cli(
        "simulate", "--trace", str(tmp_path), "--compute", "20h", "--deadline-ratio", "1.1,1.5", "--starts", "3",
        "--policy", "on-demand,uniform-progress", "--spot-price-ratio", "0.25", "-o", "json",
    )  # fmt: skip
    assert found.code == 0
    document = json.loads(found.out)
    assert document["schema"] == 1
    assert len(document["runs"]) == 2 * 3 * 2
    for run in document["runs"]:
        assert run["trace"] == "us-east-1.json"
        assert run["met_deadline"]
        assert run["cost"] == pytest.approx(
            sum(each["price"] * (each["end_hours"] - each["start_hours"]) for each in run["segments"])
        )
        assert run["cost_ratio_optimum"] >= 1 - 1e-9
        assert run["cost_ratio_on_demand"] == pytest.approx(run["cost"] / 20)
    again = cli(
        "simulate", "--trace", str(tmp_path / "us-east-1.json"), "--compute", "20h", "--deadline-ratio", "1.1,1.5",
        "--starts", "3", "--policy", "on-demand,uniform-progress", "--spot-price-ratio", "0.25", "-o", "json",
    )  # fmt: skip
    assert again.out == found.out


def test_the_table_and_the_picture_are_for_people(cli: Cli, tmp_path: Path) -> None:
    """A row a policy and ratio; a file that is a picture; twins are told."""
    market = tmp_path / "market"
    market.mkdir()
    trace(market / "a.json")
    trace(market / "b.json")
    picture = tmp_path / "out.png"
    found = cli(
        "simulate", "--trace", str(market), "--compute", "20h", "--deadline-ratio", "1.5", "--starts", "2",
        "--policy", "greedy", "--plot", str(picture),
    )  # fmt: skip
    assert found.code == 0
    assert found.out.splitlines()[0].startswith("POLICY")
    assert found.out.splitlines()[1].split()[:4] == ["greedy", "1.5", "x", "4"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "b.json holds the same data as a.json: it counts twice" in found.err


REFUSED: dict[str, tuple[list[str], int]] = {
    "there is nothing to simulate": (["--compute", "20h"], 2),
    "there is no trace": (["--trace", "nowhere.json", "--compute", "20h"], 3),
    "0.9 is no deadline ratio": (["--compute", "20h", "--deadline-ratio", "0.9"], 2),
    "longer than the deadline": (["--trace", "t.json", "--compute", "1h", "--restart-overhead", "9h"], 2),
    "does not fit in": (["--trace", "t.json", "--compute", "60h"], 2),
    "never had more than 1 machines": (["--trace", "t.json", "--compute", "20h", "--workers", "4"], 2),
    "there is no capacity policy 'greeedy'": (["--trace", "t.json", "--compute", "20h", "--policy", "greeedy"], 2),
    "metadata.value is 'free'": (["--trace", "odd.json", "--compute", "20h"], 2),
    "has no prices": (["--prices", "t.json", "--compute", "20h"], 2),
    "t has no zone z": (["--trace", "t.json", "--zones", "z", "--compute", "20h"], 2),
    "leave --trace out": (["--trace", "odd.json", "--prices", "t.json", "--compute", "20h"], 2),
    "work is lost": (["--trace", "t.json", "--compute", "20h", "--no-notice"], 2),
    "is no picture": (["--trace", "t.json", "--compute", "20h", "--starts", "1", "--policy", "greedy", "--plot", "a.txt"], 2),
}  # fmt: skip


@pytest.mark.parametrize("said", REFUSED)
def test_wrong_input_is_refused_with_what_is_wrong(said: str, cli: Cli, tmp_path: Path, monkeypatch: Any) -> None:
    """A message that names it, and the exit code of a wrong command or of what is not there."""
    trace(tmp_path / "t.json")
    trace(tmp_path / "odd.json", value="available" if said == "leave --trace out" else "free")
    words, code = REFUSED[said]
    words = [str(tmp_path / word) if word.endswith((".json", ".txt")) else word for word in words]
    found = cli("simulate", *words)
    assert found.code == code
    assert said in found.err
    assert "defect" not in found.err


def test_traces_that_are_too_short_are_left_out_of_several(cli: Cli, tmp_path: Path) -> None:
    """With a note; when all are, that is an error."""
    market = tmp_path / "market"
    market.mkdir()
    trace(market / "a.json")
    short = {"metadata": {"gap_seconds": 600}, "data": [1, 0] * 30}
    (market / "b.json").write_text(json.dumps(short))
    words = ("simulate", "--trace", str(market), "--deadline-ratio", "1.5", "--starts", "2", "--policy", "greedy")
    found = cli(*words, "--compute", "20h", "-o", "json")
    assert {run["trace"] for run in json.loads(found.out)["runs"]} == {"a.json"}
    assert "b.json has 10.0 hours" in found.err
    assert "left out" in found.err
    found = cli(*words, "--compute", "60h")
    assert found.code == 2
    assert "no trace is long enough" in found.err
