"""The planner's memory beside a GPU's, and what share of its peak the built-in trainer reaches: `make bench-gpu_memory`.

Each case trains a model with random weights for some steps on one GPU, alone in a process, through the same probe that
`orchestrate plan --probe` uses. Compared are the most bytes that torch had allocated and `planning.memory.estimate`; told are
seconds a step and the model FLOPs utilisation. Without a GPU nothing is measured.

Bar: every estimate within 15 %.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.harness import REPOSITORY, Samples, Verdict, arguments, conclude
from orchestrator.planning.hardware import GPUS, PRECISIONS
from orchestrator.planning.memory import Memory, estimate
from orchestrator.planning.shapes import BUILT_VOCABULARY, ModelShape, read_shape
from orchestrator.planning.stage import Stage
from orchestrator.spec.models import TrainingJob

BAR = 0.15
WORDS = 10_000
"""Different words in the text: more than a tokenizer that is built from it takes, so that its size is known."""
GPT2_MEDIUM = {"n_embd": 1024, "n_layer": 24, "n_head": 16}
LLAMA_1B = {
    "hidden_size": 2048, "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4,
    "intermediate_size": 5632,
}  # fmt: skip
LLAMA_3B = {
    "hidden_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 24, "num_key_value_heads": 8,
    "intermediate_size": 8192,
}  # fmt: skip
QWEN3_600M = {
    "hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
    "intermediate_size": 3072, "tie_word_embeddings": True,
}  # fmt: skip
MISTRAL_1B = {
    "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 16, "num_key_value_heads": 8,
    "intermediate_size": 7168,
}  # fmt: skip
Case = tuple[str, dict[str, Any], Stage, str, str, int, int]
CASES: tuple[Case, ...] = (
    ("gpt2", {}, 2, "None", "BF16", 16, 512),
    ("gpt2", GPT2_MEDIUM, 3, "None", "BF16", 8, 1024),
    ("gpt2", {}, 0, "None", "FP32", 8, 512),
    ("bert", {}, 0, "None", "BF16", 64, 128),
    ("roberta", {}, 2, "None", "BF16", 32, 256),
    ("distilbert", {}, 1, "None", "FP16", 32, 384),
    ("qwen3", QWEN3_600M, 2, "None", "BF16", 8, 1024),
    ("mistral", MISTRAL_1B, 2, "None", "BF16", 4, 1024),
    ("llama", LLAMA_1B, 3, "CPU", "BF16", 4, 1024),
    ("llama", LLAMA_1B, 2, "None", "BF16", 8, 1024),
    ("llama", LLAMA_3B, 2, "None", "BF16", 4, 1024),
)
"""Family, configuration, ZeRO stage, offload, precision, micro-batch, tokens of a sample."""
ENCODERS = ("bert", "roberta", "distilbert")


def planned(case: Case) -> tuple[ModelShape, Memory]:
    """What the planner says of a case."""
    family, config, stage, offload, precision, micro_batch, tokens = case
    encoder = family in ENCODERS
    shape = read_shape({"model_type": family, **config}, language_model=not encoder, vocabulary=BUILT_VOCABULARY)
    memory = estimate(
        shape,
        stage=stage,
        ranks=1,
        precision=PRECISIONS[precision],
        micro_batch=micro_batch,
        tokens=tokens,
        offload=offload == "CPU",
    )
    return shape, memory


def take(case: Case, steps: int) -> dict[str, Any]:
    """One case on this machine's GPU."""
    family, config, stage, offload, precision, micro_batch, tokens = case
    encoder = family in ENCODERS
    with tempfile.TemporaryDirectory(prefix="bench-gpu-memory-") as name:
        chance = random.Random(0)
        words = [f"w{number}" for number in range(WORDS)]
        texts = [" ".join(chance.choices(words, k=tokens + 2)) for _ in range(2_000_000 // tokens // 2)]
        file = Path(name) / ("text.csv" if encoder else "text.txt")
        rows = ["label,text", *(f"{number % 2},{text}" for number, text in enumerate(texts))] if encoder else texts
        file.write_text("\n".join(rows), encoding="utf-8")
        job = {
            "apiVersion": "orchestrate.dev/v1alpha1",
            "kind": "TrainingJob",
            "metadata": {"name": "gpu-memory"},
            "spec": {
                "model": {
                    "source": family,
                    "task": "text-classification" if encoder else "causal-lm",
                    "init": "Scratch",
                    "config": config,
                    "precision": precision,
                },
                "data": {"source": {"uri": file.name}, "cleaning": {"leakage": "Allow"}, "maxLength": tokens},
                "training": {"maxSteps": steps, "globalBatchSize": micro_batch},
                "deepspeed": {"stage": stage, "offload": offload},
                "workers": {"max": 1, "gpus": 1, "cpus": 4},
            },
        }
        document = TrainingJob.model_validate(job).model_dump(mode="json", by_alias=True, exclude_none=True)
        asked = {"document": document, "workingDir": name, "microBatch": micro_batch, "steps": steps}
        done = subprocess.run(
            [sys.executable, "-m", "orchestrator.training.probe"],
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            cwd=REPOSITORY,
            check=False,
        )
    if done.returncode:
        sys.exit(f"{family}, ZeRO-{stage}: {done.stdout}{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main() -> int:
    parser = arguments(__doc__, samples=1)
    parser.add_argument("--steps", type=int, default=10, help="steps that are timed (default 10)")
    given = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        print("there is no GPU here: nothing is measured")
        return 0
    gpu = next((known for name, known in GPUS.items() if name.split("-")[0] in torch.cuda.get_device_name(0)), None)
    samples = Samples("gpu_memory")
    off: list[float] = []
    for case in CASES:
        family, _, stage, offload, precision, micro_batch, tokens = case
        shape, memory = planned(case)
        size = f"{shape.parameters / 1e6:.0f}M"
        kind = f"{family} {size}, ZeRO-{stage}, offload {offload}, {precision}, {micro_batch} x {tokens}"
        for _ in samples.missing(kind, given.samples):
            with samples.sample(kind) as values:
                values |= take(case, given.steps)
                values |= {"case": list(case), "parameters": shape.parameters, "planned": memory.peak}
        for row in samples.rows(kind):
            found = row["sample"]
            off.append(abs(found["planned"] / found["peakBytes"] - 1))
            flops = micro_batch * tokens * shape.flops_per_token(tokens)
            reached = flops / median(found["seconds"]) / 1e12
            share = "" if gpu is None else f", {reached / gpu.peak_teraflops:.1%} of the peak"
            print(
                f"{kind}: {found['peakBytes'] / 2**30:.2f} GiB, planned {memory.peak / 2**30:.2f} "
                f"({found['planned'] / found['peakBytes'] - 1:+.1%}); {median(found['seconds']):.3f} s a step, "
                f"{reached:.0f} TFLOP/s{share}"
            )
    return conclude([Verdict("estimate off by", BAR, max(off), "", len(off), "worst")])


if __name__ == "__main__":
    sys.exit(main())
