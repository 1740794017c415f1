"""A user's own DeepSpeed engine through `Context`: saved by two ranks, taken up by one and by three, at other stages."""

from __future__ import annotations

from typing import Any

import pytest

from tests.training.gang import Run, launch

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

CODE = """
import deepspeed
import torch

from orchestrator.training.presets import load_preset

BATCH = 12


def train(context, stage, with_engine=True):
    torch.manual_seed(context.seed)
    model = torch.nn.Sequential(torch.nn.Linear(7, 13), torch.nn.Tanh(), torch.nn.Linear(13, 1))
    config = load_preset(f"zero{stage}")
    config["optimizer"]["params"] |= {"lr": 0.01, "weight_decay": 0.0}
    config |= {"train_batch_size": BATCH, "train_micro_batch_size_per_gpu": BATCH // context.world_size}
    engine, *_ = deepspeed.initialize(
        model=model, model_parameters=model.parameters(), config=config, dist_init_required=False
    )
    state = context.load(engine) if with_engine else context.load()
    state = state or {"step": 0, "noted": "nothing"}
    for step in range(state["step"], 20):
        numbers = torch.arange(BATCH * 7, dtype=torch.float32).reshape(BATCH, 7)
        rows = torch.sin(numbers + step)[context.rank :: context.world_size]
        loss = ((engine(rows) - rows.sum(dim=1, keepdim=True)) ** 2).mean()
        engine.backward(loss)
        engine.step()
        context.report(step=step + 1, loss=float(loss), samples=len(rows))
        if context.should_checkpoint():
            context.save({"step": step + 1, "noted": f"by {context.world_size}"}, engine)
        if context.should_stop:
            break
    return {"noted_by": float(state["noted"].removeprefix("by ")) if state["step"] else 0.0}
"""


def document(stage: int, **args: Any) -> dict[str, Any]:
    return {
        "apiVersion": "orchestrate.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": "mine"},
        "spec": {
            "entrypoint": {"function": "mine:train", "args": {"stage": stage, **args}},
            "workers": {"max": 2},
            "checkpoint": {"every": 100},
        },
    }


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """One undisturbed run, and runs stopped at step 10 by two ranks with ZeRO-2 and gone on with otherwise."""
    folder = tmp_path_factory.mktemp("mine")
    (folder / "mine.py").write_text(CODE)
    whole = Run(folder / "whole", document(2), folder)
    cut = {name: Run(folder / name, document(2), folder, faults=[{"stop": 10}]) for name in ("one", "three", "forgets")}
    launched = launch([whole, *cut.values()])
    assert launched.codes == [0, 0], launched.output
    for name, ranks, stage in (("one", 1, 0), ("three", 3, 3), ("forgets", 2, 2)):
        run = cut[name]
        run.faults, run.attempt, run.world_size = [], 2, ranks
        run.document = document(stage, **({"with_engine": False} if name == "forgets" else {}))
        launched = launch([run])
        assert launched.codes == [0] * ranks, launched.output
    return {"whole": whole, **cut}


@pytest.mark.parametrize(("name", "ranks"), [("one", 1), ("three", 3)])
def test_an_engine_of_the_user_s_goes_on_at_another_size(runs: dict[str, Run], name: str, ranks: int) -> None:
    """Losses after the change of size are those of the undisturbed run to 1e-6, and every rank gets rank 0's own state."""
    reference, found = runs["whole"].losses(), runs[name].losses()
    assert [event["step"] for event in runs[name].events("restored")] == [0, 10]
    assert found.keys() == reference.keys()
    assert max(abs(found[step] - reference[step]) / reference[step] for step in reference) < 1e-6
    for rank in range(ranks):
        assert runs[name].outcome(rank)["result"]["metrics"]["noted_by"] == 2.0


def test_an_engine_that_was_saved_must_be_given_to_load(runs: dict[str, Run]) -> None:
    """`load()` of what was saved with an engine is refused, with what to write instead, and changes nothing."""
    for rank in (0, 1):
        outcome = runs["forgets"].outcome(rank)
        assert outcome["reason"] == "ConfigInvalid"
        assert "load(engine)" in outcome["hint"]
    assert runs["forgets"].checkpoints() == ["step-00000010"]
