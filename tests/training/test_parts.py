"""The small parts of a worker: precision, presets, link, failures, agreement, environment."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from transformers import BertConfig, BertForSequenceClassification

from orchestrator.planning.batch import divide
from orchestrator.planning.stage import StageChoice
from orchestrator.spec.deepspeed_keys import PRESETS
from orchestrator.spec.models import Model
from orchestrator.training import environment, models, presets
from orchestrator.training.agreement import Peers
from orchestrator.training.assignment import read_assignment
from orchestrator.training.context import call
from orchestrator.training.engine import classification_metrics
from orchestrator.training.errors import Reason, WorkerFailed, out_of_memory
from orchestrator.training.hardware import Hardware, choose_precision, read_cpu_flags
from orchestrator.training.link import UNPLANNED_EVERY_SECONDS, JournalLink, Wishes, for_people
from orchestrator.training.tokens import build_tokenizer
from orchestrator.training.trainer import Trainer
from tests.training.gang import Run, free_port, job
from tests.training.gang import environment as child_environment

PLAIN_CPU = Hardware("cpu", "Some CPU", frozenset({"avx2"}))
AMX_CPU = Hardware("cpu", "New CPU", frozenset({"amx_bf16"}))
T4 = Hardware("cuda", "T4", capability=(7, 5))
A100 = Hardware("cuda", "A100", capability=(8, 0))
K80 = Hardware("cuda", "K80", capability=(3, 7))


@pytest.mark.parametrize(
    ("wish", "hardware", "precision", "words"),
    [
        ("Auto", PLAIN_CPU, "fp32", "avx512_bf16"),
        ("Auto", AMX_CPU, "bf16", "computes bf16"),
        ("Auto", T4, "fp16", "loss scaling"),
        ("Auto", A100, "bf16", "computes bf16"),
        ("Auto", K80, "fp32", "neither"),
        ("FP32", A100, "fp32", "asked for"),
        ("BF16", PLAIN_CPU, "bf16", "slowly"),
        ("BF16", A100, "bf16", "asked for"),
        ("FP16", A100, "fp16", "loss scaling"),
    ],
)
def test_precision_follows_the_hardware(wish: str, hardware: Hardware, precision: str, words: str) -> None:
    """Auto takes what the machine computes fast, a wish is kept, and both say why."""
    chosen, why = choose_precision(wish, hardware)
    assert chosen == precision
    assert words in why


@pytest.mark.parametrize(("wish", "hardware"), [("FP16", PLAIN_CPU), ("FP16", K80), ("BF16", T4), ("FP8", A100)])
def test_an_impossible_precision_is_refused(wish: str, hardware: Hardware) -> None:
    """fp16 on a CPU and bf16 before Ampere are ConfigInvalid, with the way out."""
    with pytest.raises(WorkerFailed, match="ConfigInvalid") as caught:
        choose_precision(wish, hardware)
    assert caught.value.hint


def test_cpu_flags_are_read_from_the_kernel_s_text() -> None:
    """Name and flags of the first processor; nothing from an empty text."""
    text = "processor: 0\nmodel name\t: A CPU\nflags\t\t: fpu avx2 amx_bf16\n\nprocessor: 1\n"
    assert read_cpu_flags(text) == ("A CPU", frozenset({"fpu", "avx2", "amx_bf16"}))
    assert read_cpu_flags("") == ("this CPU", frozenset())


def configure(config: Any, tmp_path: Path, stage: int = 2, precision: str = "fp32") -> dict[str, Any]:
    choice = StageChoice(stage, "test", False)  # type: ignore[arg-type]
    return presets.configuration(
        choice,
        config,
        divide(32, 2, 4),
        working_dir=tmp_path,
        precision=precision,
        learning_rate=0.1,
        weight_decay=0.01,
        max_gradient_norm=0.5,
    )


def test_the_presets_are_those_that_the_spec_knows() -> None:
    """Names in the job document's table and files in deepspeed_configs are the same."""
    assert presets.preset_names() == sorted(PRESETS)
    for name, stage in PRESETS.items():
        zero = presets.load_preset(name)["zero_optimization"]
        assert zero["stage"] == stage
        assert ("offload_optimizer" in zero) == name.endswith("-offload")
    with pytest.raises(WorkerFailed, match="zero2-offload"):
        presets.load_preset("zero9")


@pytest.mark.integration
@pytest.mark.parametrize("name", sorted(PRESETS))
def test_deepspeed_opens_every_preset(name: str, tmp_path: Path) -> None:
    """The installed DeepSpeed takes each preset, finished for a job, and reads from it what was meant."""
    code = f"""
import json, os, sys
os.environ["DS_ACCELERATOR"] = "cpu"
from orchestrator.training.presets import load_preset
from deepspeed.runtime.config import DeepSpeedConfig
config = load_preset({name!r}) | {{"train_batch_size": 8, "train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 2}}
read = DeepSpeedConfig(config)
zero = read.zero_config
print(json.dumps([int(zero.stage), zero.offload_optimizer is not None, bool(zero.round_robin_gradients), read.optimizer_name]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=child_environment(), timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [PRESETS[name], name.endswith("-offload"), False, "adamw"]
    assert "deprecated" not in done.stderr.lower()


def test_overrides_are_merged_and_the_job_s_numbers_win(tmp_path: Path) -> None:
    """An inline override reaches DeepSpeed beside the preset's other fields; batch and clipping come from the job."""
    config = configure({"zero_optimization": {"reduce_bucket_size": 7}}, tmp_path)
    assert config["zero_optimization"]["reduce_bucket_size"] == 7
    assert config["zero_optimization"]["contiguous_gradients"] is True
    assert (config["train_batch_size"], config["train_micro_batch_size_per_gpu"]) == (32, 4)
    assert config["gradient_accumulation_steps"] == 4
    assert config["gradient_clipping"] == 0.5
    assert config["optimizer"]["params"]["torch_adam"] is True
    assert config["bf16"] == {"enabled": False}


def test_a_configuration_file_is_held_to_the_same_rules(tmp_path: Path) -> None:
    """A JSON file beside the job is merged; removed keys of old tutorials and keys of the job are refused with the way out."""
    (tmp_path / "mine.json").write_text('{"zero_optimization": {"sub_group_size": 9}}')
    assert configure("mine.json", tmp_path)["zero_optimization"]["sub_group_size"] == 9
    for text, words in (
        ('{"zero_optimization": {"cpu_offload": true}}', "offload: CPU"),
        ('{"train_batch_size": 4}', "globalBatchSize"),
        ("{", "not JSON"),
        ("[]", "not a JSON object"),
    ):
        (tmp_path / "mine.json").write_text(text)
        with pytest.raises(WorkerFailed, match="ConfigInvalid") as caught:
            configure("mine.json", tmp_path)
        assert words in str(caught.value)
    with pytest.raises(WorkerFailed, match="cannot read"):
        configure("missing.json", tmp_path)


def test_bf16_without_zero_names_its_accumulation_type(tmp_path: Path) -> None:
    """DeepSpeed refuses bf16 at stage 0 unless the gradients' type is said; the other stages need nothing."""
    assert configure(None, tmp_path, stage=0, precision="bf16")["data_types"] == {"grad_accum_dtype": "bf16"}
    assert "data_types" not in configure(None, tmp_path, stage=2, precision="bf16")


@pytest.mark.integration
def test_the_shared_memory_operator_is_not_built() -> None:
    """After `import_deepspeed` a process group starts without ninja and a compiler: nothing is on PATH here."""
    code = """
import os, torch
from orchestrator.training import environment
from orchestrator.training.world import start_group
deepspeed = environment.import_deepspeed(os.environ, cpu=True)
start_group(torch, deepspeed, "cpu", os.environ)
from deepspeed.comm.torch import build_shm_op
assert build_shm_op() is None
print("started", deepspeed.get_accelerator().device_name())
os._exit(0)
"""
    env = child_environment(
        PATH="/nowhere", RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port())
    )
    done = subprocess.run([sys.executable, "-u", "-c", code], capture_output=True, text=True, env=env, timeout=60)
    assert "started cpu" in done.stdout, done.stderr


def test_the_environment_is_the_job_s_own(tmp_path: Path) -> None:
    """Threads, offline mode and the JIT folder are set, and locks of a build that was killed are gone."""
    lock = tmp_path / "torch_extensions" / "op" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    environ: dict[str, str] = {}
    environment.prepare(tmp_path, 3, environ, clean_locks=True)
    assert not lock.exists()
    assert environ["TORCH_EXTENSIONS_DIR"] == str(tmp_path / "torch_extensions")
    assert (environ["OMP_NUM_THREADS"], environ["HF_HUB_OFFLINE"]) == ("3", "1")


def test_importing_the_package_loads_no_heavy_library() -> None:
    """`orchestrator.training` and its light modules import neither torch nor transformers nor DeepSpeed nor numpy."""
    code = (
        "import sys, orchestrator.training, orchestrator.training.link, orchestrator.training.errors;"
        "print([name for name in ('torch', 'transformers', 'deepspeed', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=child_environment(), timeout=60
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_a_failure_survives_the_way_between_processes() -> None:
    """Reason, message and hint come through pickle; an unknown reason is a defect."""
    error = WorkerFailed(Reason.STORAGE_FULL, "no room", "make some")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert (again.reason, again.message, again.hint) == ("StorageFull", "no room", "make some")
    assert str(again) == "StorageFull: no room; make some"
    with pytest.raises(ValueError, match="Sulky"):
        WorkerFailed("Sulky", "x")


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (MemoryError(), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried"),
            True,
        ),
        (RuntimeError("CUDA out of memory. Tried to allocate"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_refused_memory_is_told_from_other_errors(error: Exception, memory: bool) -> None:
    """Allocations refused by Python, torch or CUDA are OutOfMemory, alone or agreed on by the ranks; others are not."""
    found = out_of_memory(error)
    assert (found is not None and found.reason == "OutOfMemory") is memory

    def work() -> None:
        raise error

    with pytest.raises(WorkerFailed, match="OutOfMemory" if memory else "ApplicationError"):
        Peers(None, 0, 1, "cpu").settle(work)


def test_the_journal_link_writes_lines_and_never_raises(tmp_path: Path) -> None:
    """Events become JSON lines and lines for people; a closed file is no error; wishes are counted."""
    screen = io.StringIO()
    link = JournalLink(tmp_path / "deep" / "events.jsonl", screen)
    link.send({"kind": "step", "step": 1, "epoch": 0.5, "loss": 0.25, "lr": 0.1})
    link.wish_checkpoint()
    link.wish_checkpoint()
    link.wish_stop()
    assert link.wishes() == Wishes(2, True, UNPLANNED_EVERY_SECONDS)
    link.close()
    link.send({"kind": "log", "lines": ["late"]})
    assert json.loads((tmp_path / "deep" / "events.jsonl").read_text())["loss"] == 0.25
    assert screen.getvalue() == "step 1 epoch 0.50 loss 0.2500 lr 1.00e-01\n"
    assert for_people({"kind": "unknown"}) is None


def test_a_lone_process_agrees_with_itself() -> None:
    """Without peers no collective is needed, and failures get a reason."""
    peers = Peers(None, 0, 1, "cpu")
    assert peers.sum([1.0, 2.0]) == [1.0, 2.0]
    assert peers.share(lambda: 5) == [5]
    assert peers.first(lambda: 6) == 6
    with pytest.raises(WorkerFailed, match="ApplicationError: KeyError") as caught:
        peers.settle(lambda: os.environ["NO_SUCH_NAME_HERE"])
    assert isinstance(caught.value.__cause__, KeyError)


def test_macro_f1_is_the_mean_over_the_classes_that_occur() -> None:
    """A 3x3 confusion matrix with one class unseen: by hand 2*3/(4+4), 2*5/(6+6), mean of the two."""
    metrics = classification_metrics(np.array([[3, 1, 0], [1, 5, 0], [0, 0, 0]], dtype=float))
    assert metrics["accuracy"] == pytest.approx(0.8)
    assert metrics["macro-f1"] == pytest.approx((0.75 + 10 / 12) / 2)


def test_an_assignment_that_lacks_a_field_is_named() -> None:
    """A broken assignment is ConfigInvalid with the field, not a traceback of a mapping."""
    with pytest.raises(WorkerFailed, match="lacks 'spec'"):
        read_assignment({})


def test_an_engine_s_micro_batch_takes_the_place_of_the_job_s(tmp_path: Path) -> None:
    """The global batch stays; what the engine names is computed with more accumulation."""
    assignment = Run(tmp_path / "run", job(), tmp_path).plan()["assignment"]
    batches = []
    for more in ({}, {"micro_batch": 2}):
        trainer = Trainer.__new__(Trainer)
        trainer.assignment, trainer.peers = read_assignment({**assignment, **more}), Peers(None, 0, 2, "cpu")
        trainer.training = trainer.assignment.spec.training
        batches.append(trainer._batch())
    assert batches[0].global_batch == batches[1].global_batch == batches[1].accumulation * 4
    assert batches[0].micro_batch > batches[1].micro_batch == 2


def test_a_function_that_cannot_be_called_or_returns_no_numbers_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong `spec.entrypoint.args` are refused before the call, with the signature; a returned text is named."""
    module = ModuleType("their_code")
    module.wants = lambda context, *, wanted: None  # type: ignore[attr-defined]
    module.returns = lambda context: {"score": "high"}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "their_code", module)
    context = SimpleNamespace(
        args={"other": 1}, metrics={}, should_stop=False, step=0, finish=lambda: None, close=lambda: None
    )
    with pytest.raises(WorkerFailed, match=r"spec.entrypoint.args: their_code:wants\(context, \*, wanted\)") as refused:
        call(context, "their_code:wants")  # type: ignore[arg-type]
    assert refused.value.reason == "ConfigInvalid"
    context.args = {}
    with pytest.raises(WorkerFailed, match="returned 'score': 'high', which is no number"):
        call(context, "their_code:returns")  # type: ignore[arg-type]


def test_weights_that_are_cut_off_are_a_wrong_configuration(tmp_path: Path) -> None:
    """A model folder whose weights end too early gives ConfigInvalid with the folder's name, so it is not tried again."""
    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=10)
    BertForSequenceClassification(config).save_pretrained(tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    model = Model.model_validate({"source": str(tmp_path / "model"), "task": "text-classification"})
    tokenizer = build_tokenizer(["one two", "three"])
    with pytest.raises(WorkerFailed, match="weights cannot be read") as refused:
        models.create(model, ["a", "b"], tokenizer, 8, tmp_path)
    assert refused.value.reason == "ConfigInvalid"
