"""`checkpoint.every: Auto` in real jobs: they save as the link wishes, and follow when it wishes otherwise."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from tests.training import automatic_rank, gang
from tests.training.gang import Run, job, launch, write_reviews

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

STEPS = 80
OWN = """\
def train(context):
    for step in range(context.step + 1, 81):
        context.report(step=step, loss=1.0, samples=4)
        if context.should_checkpoint():
            context.save({"step": step})
"""


def test_jobs_save_by_the_wished_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The built-in trainer and a function of the user's own, on two ranks, save every half second while that is wished, at
    the same steps on both; when the wish is for seldom, nothing more is saved but the built-in trainer's last step."""
    monkeypatch.setattr(gang, "SCRIPT", Path(automatic_rank.__file__))
    write_reviews(tmp_path / "reviews.csv")
    (tmp_path / "own.py").write_text(OWN)
    built_in = job(training__maxSteps=STEPS, checkpoint__every="Auto", checkpoint__keep=100)
    own = job(
        model=None,
        data=None,
        deepspeed=None,
        training={},
        entrypoint={"function": "own:train"},
        checkpoint={"every": "Auto", "keep": 100},
    )
    runs = [Run(tmp_path / "built-in", built_in, tmp_path), Run(tmp_path / "own", own, tmp_path)]
    launched = launch(runs)
    assert launched.codes == [0, 0], launched.output
    for run, last in zip(runs, ([STEPS], []), strict=True):
        assert run.outcome()["result"]["step"] == STEPS
        ended_ns = {event["step"]: event["at_ns"] for event in run.events("step")}
        saved = [event["step"] for event in run.events("checkpoint")]
        often = [step for step in saved if step <= automatic_rank.OFTEN_STEPS]
        assert len(often) >= 2, saved
        assert saved == often + last
        shortest_ns = (automatic_rank.OFTEN_SECONDS - automatic_rank.STEP_SECONDS) * 1e9
        assert all(ended_ns[after] - ended_ns[before] >= shortest_ns for before, after in pairwise(often))
