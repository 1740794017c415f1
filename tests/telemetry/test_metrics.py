"""The metric catalogue, the text that is rendered from it, and amounts that never fall."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from orchestrator.accounting import (
    CategoryBooked,
    CheckpointStalled,
    Entry,
    Ledger,
    MachineHeld,
    MachineReleased,
    MachineTurned,
    WorkSettled,
)
from orchestrator.telemetry import Amounts, JobSample, Snapshot, amounts_of, render
from orchestrator.telemetry.catalogue import CATALOGUE
from orchestrator.telemetry.reference import page

SECOND = 1_000_000_000
HOUR = 3_600 * SECOND


def machine(name: str = "m1", at_ns: int = 0, price: int | None = 3_600_000_000) -> MachineHeld:
    """A machine of 3.6 dollars an hour, a tenth of a cent a second, with two GPUs."""
    listed = None if price is None else 2 * price
    return MachineHeld(at_ns, name, "p3", "z", "on-demand", 2, price, listed, "list", True, SECOND, 0)


def sample(amounts: Amounts, **changes: Any) -> JobSample:
    values: dict[str, Any] = {
        "namespace": "default",
        "name": "a",
        "uid": "u1",
        "team": "nlp",
        "cost_center": "42",
        "queue": "default",
        "model": 'back\\slash "quoted"\nline',
        "zero_stage": "2",
        "instance_type": "p3",
        "phase": "Running",
        "amounts": amounts,
        "per_hour": 3_600_000_000,
        "steps": {"kept": 10, "lost": 2},
        "samples": 80,
        "preemptions": {"WorkerLost": 1},
        "restarts": {"WorkerLost": 1, "ApplicationError": 2},
        "checkpoints": {"committed": 1, "refused": 0},
        "last_checkpoint_ns": 1_700_000_000 * SECOND,
        "workers": {"desired": 2, "ready": 1, "draining": 0},
    }
    return JobSample(**(values | changes))


def snapshot(*jobs: JobSample, rollups: Mapping[tuple[str, str], Amounts] | None = None) -> Snapshot:
    phases = Counter({("default", "Running"): 1, ("default", "Failed"): 0})
    return Snapshot("0.1.0", True, jobs, phases, rollups or {}, 1_700_000_000 * SECOND, 3, 4096)


def samples_of(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    found: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    for family in text_string_to_metric_families(text):
        for one in family.samples:
            key = (one.name, frozenset(one.labels.items()))
            assert key not in found, f"twice: {key}"
            found[key] = one.value
    return found


def of(text: str, name: str, **labels: str) -> float | None:
    """The value of the one series of that name whose labels contain `labels`; None when there is none."""
    values = [
        v for (n, have), v in samples_of(text).items() if n == f"orchestrate_{name}" and set(labels.items()) <= have
    ]
    assert len(values) <= 1, values
    return values[0] if values else None


def full_snapshot() -> Snapshot:
    ledger = Ledger([machine(), CategoryBooked(10 * SECOND, "at_risk"), WorkSettled(20 * SECOND, True)])
    amounts = amounts_of(ledger, 30 * SECOND)
    unpriced = amounts_of(Ledger([machine("m2", price=None)]), 30 * SECOND)
    rollup = Amounts()
    rollup.add(amounts)
    rollup.add(unpriced)
    return snapshot(sample(amounts), sample(unpriced, name="b", per_hour=None), rollups={("default", "nlp"): rollup})


def test_the_text_says_what_the_catalogue_says() -> None:
    """Every family of the text has the name, type, help and labels of the catalogue, and every one of it occurs."""
    seen = {}
    for family in text_string_to_metric_families(render(full_snapshot())):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        seen[name] = (family.type, family.documentation, {tuple(sorted(one.labels)) for one in family.samples})
    assert seen == {m.name: (m.kind, m.help, {tuple(sorted(m.labels))}) for m in CATALOGUE}


def test_awkward_label_values_survive() -> None:
    """Quotes, backslashes and line ends in a label value are read back as they were."""
    text = render(snapshot(sample(Amounts())))
    (info,) = [dict(labels) for (name, labels), _ in samples_of(text).items() if name == "orchestrate_job_info"]
    assert info["model"] == 'back\\slash "quoted"\nline'


def test_an_unknown_price_has_no_sample() -> None:
    """A job of unknown price exports no cost, not zero, and counts its machine; the rollup tells what is missing."""
    text = render(full_snapshot())
    assert of(text, "job_cost_dollars_total", training_job="a") == pytest.approx(0.03)
    for name in (
        "job_cost_dollars_total",
        "job_list_cost_dollars_total",
        "job_at_risk_dollars",
        "job_spend_dollars_per_hour",
    ):
        assert of(text, name, training_job="b") is None, name
    assert of(text, "job_unpriced_machines", training_job="b") == 1
    assert of(text, "unpriced_machine_seconds_total", team="nlp") == 30
    assert of(text, "cost_dollars_total", team="nlp", capacity_type="on-demand") == pytest.approx(0.03)


def test_only_settled_money_is_in_a_category() -> None:
    """Training that no checkpoint covers is at risk, and what is going on is in no category; together they are the cost."""
    text = render(full_snapshot())
    assert of(text, "job_cost_category_dollars_total", training_job="a", category="provisioning") == pytest.approx(0.01)
    assert of(text, "job_cost_category_dollars_total", training_job="a", category="useful") == pytest.approx(0.01)
    assert of(text, "job_cost_category_dollars_total", training_job="a", category="at_risk") is None
    assert of(text, "job_at_risk_dollars", training_job="a") == pytest.approx(0.01)
    assert of(text, "job_ongoing_dollars", training_job="a") == 0
    ongoing = amounts_of(Ledger([machine()]), 30 * SECOND)
    assert (ongoing.ongoing, sum(ongoing.settled.values())) == (30_000_000, 0)


def test_rollups_are_there_at_zero() -> None:
    """Every series of a rollup exists from its first moment: one that is born later loses its first value."""
    text = render(snapshot(rollups={("default", ""): Amounts()}))
    born = [key for key in samples_of(text) if key[0].startswith("orchestrate_cost_category_dollars_total")]
    assert len(born) == 2 * 8
    assert of(text, "cost_dollars_total", capacity_type="spot") == 0


def test_amounts_lose_no_digit() -> None:
    """Nano-dollars are written exactly, however large."""
    amounts = Amounts()
    amounts.cost["spot"] = 9_007_199_254_740_993
    assert 'capacity_type="spot"} 9007199.254740993\n' in render(snapshot(sample(amounts)))


@example(seed=52_332_777)  # lost work that ended at the scrape once counted as going on
@given(seed=st.integers(min_value=0, max_value=2**32))
def test_counters_never_fall(seed: int) -> None:
    """Over random lives of a job, scraped at any commit: no counter falls, and cost = settled + at risk + ongoing."""
    chance = random.Random(seed)
    ledger = Ledger()
    now = 0
    before = Amounts()
    held: list[str] = []
    training_since: int | None = None

    def book(*entries: Entry) -> None:
        for entry in entries:
            ledger.append(entry)

    def late() -> int:
        """The time of something that a worker reports after the fact."""
        return max(0, now - chance.randrange(4 * SECOND))

    for number in range(chance.randrange(5, 25)):
        now += chance.randrange(1, 20 * SECOND)
        choice = chance.randrange(9)
        if not held:
            held = [f"m{number}-{index}" for index in range(chance.randrange(1, 4))]
            book(
                *(machine(name, now) for name in held), CategoryBooked(now, chance.choice(["provisioning", "restart"]))
            )
        elif choice == 0:
            book(CategoryBooked(late(), "at_risk"))
            training_since = ledger.statement(0).until_ns
        elif choice == 1 and training_since is not None:
            covers = late()
            book(WorkSettled(covers, chance.random() < 0.8), CheckpointStalled(covers + SECOND // 2, covers))
        elif choice == 2 and training_since is not None:
            book(WorkSettled(now, False), CategoryBooked(now, "restart"))
            training_since = None
        elif choice == 3:
            book(WorkSettled(now, chance.random() < 0.5), CategoryBooked(now, "shutdown"))
            book(*(MachineReleased(now, name) for name in held))
            held, training_since = [], None
        elif choice == 4:
            held.append(f"m{number}-joins")
            book(replace(machine(held[-1], late()), role="warming"))
        elif choice == 5:
            then = max(late(), ledger.statement(0).until_ns + 1)  # an engine tells of slots in order
            book(MachineTurned(then, chance.choice(held), chance.choice(["member", "idle", "leaving", "warming"])))
        elif choice == 6 and len(held) > 1:
            book(MachineReleased(now, held.pop(chance.randrange(len(held)))))
        elif choice == 7 and training_since is not None:
            # A world has trained for a moment at least (see lifecycle's `worlds`): nothing that was over goes on again.
            book(CategoryBooked(max(late(), training_since + 1), chance.choice(["restart", "resize"])))
            book(WorkSettled(now, False, whole=True, from_ns=late()))
            training_since = None
        amounts = amounts_of(ledger, now)
        for fell in (before.cost - amounts.cost, before.list_cost - amounts.list_cost, before.gpu_ns - amounts.gpu_ns):
            assert not fell, f"{seed=} {number=}: fell by {fell}"
        assert not before.settled - amounts.settled, f"{seed=} {number=}: {before.settled} -> {amounts.settled}"
        total = sum(amounts.cost.values())
        assert total == sum(amounts.settled.values()) + amounts.at_risk + amounts.ongoing, f"{seed=}"
        before = amounts


def test_names_follow_the_conventions() -> None:
    """Names have the prefix, counters end in _total and others do not, and no label is called job."""
    names = [metric.name for metric in CATALOGUE]
    assert len(set(names)) == len(names)
    for metric in CATALOGUE:
        assert metric.name.startswith("orchestrate_"), metric
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric
        assert "job" not in metric.labels, metric
        assert "|" not in metric.help + metric.caution, metric


def test_promtool_finds_nothing_to_lint() -> None:
    """`promtool check metrics` accepts the text without a word."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("NO PROMTOOL HERE: install Debian's `prometheus` to lint the metrics")
    text = render(full_snapshot())
    done = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_reference_page_is_up_to_date(repository: Path) -> None:
    """docs/metrics.md is what the catalogue generates."""
    assert (repository / "docs" / "metrics.md").read_text(encoding="utf-8") == page(), (
        "run: python -m orchestrator.telemetry.reference > docs/metrics.md"
    )
