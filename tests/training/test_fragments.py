"""Real DeepSpeed engines on gloo: what one world saved, another takes up, whatever stage and size."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from benchmarks.reshard import BF16_LOSS_GAP, FP32_LOSS_GAP, judge, run_plan, source, target

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1800)]

SIZES = (1, 2, 3)
OFFLOAD = {"zero": {"offload_optimizer": {"device": "cpu"}}}
ROUND_ROBIN = {"zero": {"round_robin_gradients": True}}
FULL_SUMS = {"config": {"data_types": {"grad_accum_dtype": "fp32"}}}

SOURCES: dict[str, tuple[int, dict[str, Any]]] = {
    **{f"{stage} of {size}": (size, {"stage": stage}) for stage in (2, 3) for size in SIZES},
    "0 of 2": (2, {"stage": 0}),
    "1 of 2": (2, {"stage": 1}),
    "bf16 0 of 2": (2, {"stage": 0, "precision": "bf16"}),
    "bf16 1 of 2": (2, {"stage": 1, "precision": "bf16", **FULL_SUMS}),
    "bf16 3 of 3": (3, {"stage": 3, "precision": "bf16"}),
    "offload 2 of 2": (2, {"stage": 2, **OFFLOAD}),
    "offload 3 of 2": (2, {"stage": 3, **OFFLOAD}),
    "round robin 2 of 3": (3, {"stage": 2, **ROUND_ROBIN}),
    "few 2 of 2": (2, {"stage": 2, "trained": "ln_f"}),
    "few 3 of 3": (3, {"stage": 3, "trained": "ln_f"}),
    "accumulated 2 of 2": (2, {"stage": 2, "accumulation": 3}),
}
"""Name: size and setup of a run that is saved."""
UNTRAINED = "untrained 2 of 3"
IN_THE_MIDDLE = "in the middle"


@dataclass(frozen=True)
class Case:
    """A checkpoint taken up by `size` ranks."""

    saved: str
    size: int
    setup: dict[str, Any]
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        words = [f"{key}={value}" for key, value in {**self.setup, **self.more}.items() if key != "stage"]
        return f"{self.saved} to {self.setup['stage']} of {self.size} {' '.join(words)}".strip()

    @property
    def exact(self) -> bool:
        size, setup = {**SOURCES, **COMPILED_SOURCES}.get(self.saved, (0, {}))
        return (size, setup) == (self.size, self.setup)

    @property
    def gap(self) -> float:
        return BF16_LOSS_GAP if "precision" in self.setup else FP32_LOSS_GAP


BF16 = {"precision": "bf16"}
CASES = [
    *(
        Case(f"{saved} of {size}", new_size, {"stage": stage}, {"getters": True})
        for saved in (2, 3)
        for stage in (2, 3)
        for size in SIZES
        for new_size in SIZES
        if stage != saved or size == new_size
    ),
    *(Case(name, size, setup) for name, (size, setup) in SOURCES.items() if not name.startswith(("2 of", "3 of"))),
    Case("0 of 2", 3, {"stage": 1}),
    Case("1 of 2", 3, {"stage": 0}),
    Case("bf16 0 of 2", 3, {"stage": 3, **BF16}),
    Case("bf16 1 of 2", 3, {"stage": 0, **BF16}),
    Case("bf16 3 of 3", 2, {"stage": 1, **BF16, **FULL_SUMS}),
    Case("offload 2 of 2", 3, {"stage": 3, **OFFLOAD}),
    Case("offload 3 of 2", 1, {"stage": 0}),
    Case("2 of 3", 2, {"stage": 2, **OFFLOAD}),
    Case("round robin 2 of 3", 2, {"stage": 2}, {"getters": True}),
    Case("3 of 2", 3, {"stage": 2, **ROUND_ROBIN}),
    Case("few 2 of 2", 3, {"stage": 3, "trained": "ln_f"}, {"getters": True}),
    Case("few 3 of 3", 2, {"stage": 0, "trained": "ln_f"}),
    Case("accumulated 2 of 2", 3, {"stage": 3}),
    Case("3 of 3", 2, {"stage": 2, "accumulation": 3}),
    Case("2 of 2", 3, {"stage": 2}, {"unmapped": True}),
    Case("2 of 2", 3, {"stage": 2, "zero": {"parameter_alignment": True}}),
]
CPU_ADAM = {"torch_adam": False, **OFFLOAD}
COMPILED_SOURCES = {"2 of 2": SOURCES["2 of 2"], "cpu adam 2 of 2": (2, {"stage": 2, **CPU_ADAM})}
COMPILED_CASES = [
    Case("cpu adam 2 of 2", 2, {"stage": 2, **CPU_ADAM}),
    Case("cpu adam 2 of 2", 2, {"stage": 3}),
    Case("2 of 2", 2, {"stage": 3, **CPU_ADAM}),
]
UNTRAINED_CASE = Case(UNTRAINED, 2, {"stage": 3})
REFUSED = {
    "other trained set": Case("few 2 of 2", 2, {"stage": 2}),
    "another scheduler": Case("2 of 2", 2, {"stage": 2, "scheduler": False}),
}


@dataclass(frozen=True)
class Matrix:
    saved: dict[str, dict[str, Any]]
    loaded: dict[str, dict[str, Any]]
    folder: Path


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Matrix:
    """Every source and every case, in as few gangs as can be."""
    folder = tmp_path_factory.mktemp("matrix")
    saved: dict[str, dict[str, Any]] = {}
    for size in SIZES:
        runs = {name: source(folder, name, setup) for name, (of, setup) in SOURCES.items() if of == size}
        if size == 3:
            runs[UNTRAINED] = {**source(folder, UNTRAINED, {"stage": 2}), "steps_before": 0, "first_step": 5}
        if size == 2:
            document = source(folder, IN_THE_MIDDLE, {"stage": 2, "accumulation": 2})
            runs[IN_THE_MIDDLE] = {**document, "middle": True}
        saved |= dict(zip(runs, run_plan(list(runs.values()), size, folder), strict=True))
    loaded: dict[str, dict[str, Any]] = {}
    for size in SIZES:
        cases = [case for case in [*CASES, UNTRAINED_CASE, *REFUSED.values()] if case.size == size]
        runs = {case.name: {**target(folder, case.name, case.saved, case.setup), **case.more} for case in cases}
        loaded |= dict(zip(runs, run_plan(list(runs.values()), size, folder), strict=True))
    return Matrix(saved, loaded, folder)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_run_goes_on_in_another_world(matrix: Matrix, case: Case) -> None:
    """Masters, moments, frozen weights, buffers and model weights keep their hashes, and the next losses are the source's."""
    loaded = matrix.loaded[case.name]
    assert "error" not in loaded
    judged = judge(matrix.saved[case.saved], loaded)
    assert judged.hashes > 30
    assert judged.holds(exact=case.exact, gap=case.gap), judged
    accumulation = case.setup.get("accumulation", 1)
    assert loaded["counters"] == {"global_steps": 10, "micro_steps": 10 * accumulation, "global_samples": 120}


@pytest.mark.faults
@pytest.mark.skipif(
    shutil.which("c++") is None, reason="DeepSpeedCPUAdam is compiled at its first use: no C++ compiler"
)
def test_deepspeeds_own_adam_goes_on_to_the_last_bit(tmp_path: Path) -> None:
    """DeepSpeedCPUAdam, which hides step numbers in C++, goes on exactly; torch's Adam and it take up each other's state."""
    runs = {name: source(tmp_path, name, setup) for name, (_, setup) in COMPILED_SOURCES.items()}
    saved = dict(zip(runs, run_plan(list(runs.values()), 2, tmp_path), strict=True))
    wanted = [target(tmp_path, case.name, case.saved, case.setup) for case in COMPILED_CASES]
    for case, loaded in zip(COMPILED_CASES, run_plan(wanted, 2, tmp_path), strict=True):
        assert "error" not in loaded, case.name
        judged = judge(saved[case.saved], loaded)
        assert judged.holds(exact=case.exact, gap=case.gap), judged


@pytest.mark.parametrize("case", [case for case in CASES if "getters" in case.more], ids=lambda case: case.name)
def test_deepspeeds_getters_see_what_was_loaded(matrix: Matrix, case: Case) -> None:
    """After a load, safe_get_full_fp32_param and safe_get_full_optimizer_state give the loaded masters and moments."""
    loaded = matrix.loaded[case.name]
    assert loaded["getters"]
    assert loaded["getters"] == {key: loaded["loaded"][key] for key in loaded["getters"]}


def test_every_optimizer_class_is_met(matrix: Matrix) -> None:
    """The sample contains each of DeepSpeed's optimizer classes that the adapter knows."""
    assert {told["class"] for told in matrix.saved.values()} == {
        "AdamW",
        "FP16_UnfusedOptimizer",
        "DeepSpeedZeroOptimizer",
        "BF16_Optimizer",
        "DeepSpeedZeroOptimizer_Stage3",
    }


def test_a_run_can_be_saved_before_its_first_step(matrix: Matrix) -> None:
    """Before the first step the optimizer's state is made by hand, and training from it is training from the beginning."""
    judged = judge(matrix.saved[UNTRAINED], matrix.loaded[UNTRAINED_CASE.name])
    assert judged.holds(exact=False, gap=FP32_LOSS_GAP), judged
    kinds = {key.split()[1] for key in matrix.saved[UNTRAINED]["saved"]}
    assert {"exp_avg", "exp_avg_sq"} <= kinds


def test_stages_agree_on_the_first_steps_in_bf16(matrix: Matrix) -> None:
    """Attaching takes back the step that DeepSpeed makes at the start of stage 0 in bf16, so its losses are those of others."""
    first = matrix.saved["bf16 0 of 2"]["before"]
    other = matrix.saved["bf16 1 of 2"]["before"]
    assert first == pytest.approx(other, rel=BF16_LOSS_GAP)
    assert first[0] == other[0]


def test_nothing_is_saved_in_the_middle_of_a_step(matrix: Matrix) -> None:
    """Between two micro-batches of a step there are gradients that no checkpoint holds, so saving is refused on every rank."""
    for rank in (0, 1):
        told = json.loads((matrix.folder / f"{IN_THE_MIDDLE}.saved.{rank}").read_text())
        assert told["error"]["reason"] == "ConfigInvalid"
        assert "in the middle of a step of 2" in told["error"]["message"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("other trained set", "gain is frozen in the checkpoint and trained in the model"),
        ("another scheduler", "the checkpoint has the scheduler WarmupDecayLR and this engine no scheduler"),
    ],
)
def test_what_does_not_fit_is_refused_on_every_rank(matrix: Matrix, name: str, words: str) -> None:
    """Another trained set or scheduler is an error on all ranks that names the first differences."""
    case = REFUSED[name]
    for rank in range(case.size):
        told = json.loads((matrix.folder / f"{case.name}.loaded.{rank}").read_text())
        assert told["error"]["reason"] == "ConfigInvalid"
        assert words in told["error"]["message"]
        assert told["error"]["hint"]


def test_a_flipped_bit_is_raised_on_every_rank(matrix: Matrix) -> None:
    """A bit flipped in what one rank reads is an error on both, and the same processes take up the whole copy afterwards."""
    torn = matrix.folder / "torn"
    shutil.copytree(matrix.folder / "3 of 2", torn)
    (file,) = torn.rglob("rank-00001.bin")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    runs = [target(matrix.folder, name, name, {"stage": 3}) for name in ("torn", "3 of 2")]
    _, whole = run_plan(runs, 2, matrix.folder)
    assert judge(matrix.saved["3 of 2"], whole).holds(exact=True, gap=0.0)
    for rank in (0, 1):
        told = json.loads((matrix.folder / f"torn.loaded.{rank}").read_text())
        assert told["error"]["reason"] == "StorageFailed"
        assert "rank-00001.bin" in told["error"]["message"]
