"""What people see of money: cost, prices, receipt."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli.receipt import receipt_lines
from orchestrator.cli.view import JobView, dollars
from tests.cli.conftest import Cli
from tests.cli.fake_controller import FakeController, resource, segments

NOW_NS = 1_793_527_700 * 10**9


def receipt(job: dict[str, Any], **cost: Any) -> list[str]:
    return receipt_lines(JobView(job), {**job["status"]["cost"], "segments": segments(), **cost}, NOW_NS)


def test_receipt_is_the_golden_one(repository: Path) -> None:
    """The receipt of a job that ended well is what tests/golden/receipt.txt shows."""
    golden = (repository / "tests" / "golden" / "receipt.txt").read_text(encoding="utf-8")
    assert "\n".join(receipt(resource(phase="Succeeded"))) + "\n" == golden


@pytest.mark.parametrize("drawn", [True, False])
def test_the_largest_receipt_fits_a_terminal(drawn: bool) -> None:
    """With every category, restarts, a long error and long paths it keeps to 25 lines, and its figures to 80 columns."""
    job = resource(phase="Failed", reason="ApplicationError", message="The job's own code failed. " * 30)
    job["status"]["restarts"] = {"application": 3, "preemption": 12}
    job["status"]["progress"]["metrics"] = {
        split: {f"metric-{i}": 0.5 for i in range(9)} for split in ("train", "validation", "test")
    }
    categories = (
        "lost_work",
        "provisioning",
        "restart",
        "resize",
        "checkpoint_stall",
        "input_stall",
        "idle",
        "shutdown",
    )
    cost = {
        **job["status"]["cost"],
        "wastedUSD": dict.fromkeys(categories, "0.01"),
        "atRiskUSD": "0.1",
        "savedUSD": "3",
    }
    lines = receipt_lines(JobView(job), {**cost, "segments": segments()}, NOW_NS, drawn=drawn)
    places = [line for line in lines if line.startswith((" Model", " Checkpoint"))]
    assert len(lines) <= 25
    assert max(len(line) for line in lines if line not in places) <= 80
    assert drawn or all(line.isascii() for line in lines)


def test_parts_of_the_receipt_add_up() -> None:
    """The amounts shown below the total add up to it, to the last digit shown."""
    job = resource(phase="Succeeded")
    lines = receipt(job)
    start = next(index for index, line in enumerate(lines) if line.startswith(" Cost"))
    shown = [
        Decimal(line.split("$")[1].split()[0]) for line in lines[start + 1 :] if line.startswith("   ") and "$" in line
    ]
    assert sum(shown) == Decimal(job["status"]["cost"]["totalUSD"])


def test_unknown_prices_stay_unknown() -> None:
    """When a price is unknown, the total and the parts say so, and there is no share and no price of samples."""
    unknown = {"totalUSD": None, "usefulUSD": None, "wastedUSD": {"provisioning": None}, "perThousandSamplesUSD": None}
    text = "\n".join(receipt(resource(phase="Succeeded"), **unknown, savedUSD=None))
    assert text.count("unknown") == 3
    assert "$" not in text


def test_what_nobody_bills_says_so() -> None:
    """An example price names the machine it stands for and that nothing was billed; a real one names its source."""
    job = resource(phase="Succeeded")
    assert " Priced as p3.2xlarge (example); nothing was billed." in receipt(job)
    assert " Priced by p3.2xlarge: AWS, us-east-1, 2026-07-20." in receipt(
        job, billed=True, priceSources=["p3.2xlarge: AWS, us-east-1, 2026-07-20"]
    )


def test_a_failed_job_says_why() -> None:
    """The reason of a failure stands at the top of the receipt."""
    job = resource(phase="Failed", reason="NonFiniteLoss", message="The loss became infinite or not a number. Step 12.")
    assert receipt(job)[2] == " The loss became infinite or not a number. Step 12."


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("1234.5", "$1,234.50"),
        ("0.7854", "$0.7854"),
        ("0.000012345", "$0.000012"),
        ("0.00", "$0.00"),
        ("-0.5", "-$0.5000"),
        (None, "unknown"),
    ],
)
def test_dollars_for_a_screen(text: str | None, shown: str) -> None:
    """Two decimals from one dollar up, four below, six for the smallest; unknown stays unknown."""
    assert dollars(text) == shown


def test_cost_shows_every_category_to_the_nano_dollar(cli: Cli, controller: FakeController) -> None:
    """Time and exact dollars by category, and a total that is their sum."""
    controller.add(resource(phase="Succeeded"))
    run = cli("cost", "sentiment")
    assert run.code == 0
    rows = {line.split()[0]: line.split() for line in run.out.splitlines()[1:] if "$" in line}
    assert rows["useful"][-3:] == ["$0.700000000", "89.1", "%"]
    parts = [Decimal(rows[name][-3].lstrip("$")) for name in ("useful", "provisioning", "checkpoint_stall")]
    assert sum(parts) == Decimal(rows["total"][-3].lstrip("$"))
    assert "nothing was billed" in run.out


def test_cost_by_segment_and_as_json(cli: Cli, controller: FakeController) -> None:
    """`--segments` shows each span of each machine; JSON without it is the sums alone."""
    controller.add(resource(phase="Succeeded"))
    assert len(cli("cost", "sentiment", "--segments").out.splitlines()) == 1 + len(segments())
    assert json.loads(cli("cost", "sentiment", "--segments", "-o", "json").out)["segments"] == segments()
    assert "segments" not in json.loads(cli("cost", "sentiment", "-o", "json").out)


def test_cost_of_a_job_that_holds_nothing_yet(cli: Cli, controller: FakeController) -> None:
    """Before any machine is held there is a total of nothing, and no error."""
    job = controller.add(resource(phase="Queued"))
    job["status"]["cost"] = {
        "totalUSD": "0.00",
        "usefulUSD": "0.00",
        "atRiskUSD": "0.00",
        "wastedUSD": {},
        "priceSources": [],
    }
    assert cli("cost", "sentiment").code == 0
    assert "$0.00" in cli("list").out


def test_prices_of_the_controller(cli: Cli, controller: FakeController) -> None:
    """With a controller, its price book is the one in force; an absent price is unknown."""
    run = cli("prices")
    assert "a test, 2026-01-01" in run.out
    assert run.out.splitlines()[-1].split() == ["x1", "here", "1", "3.06", "unknown", "2026-01-01"]


def test_a_price_file_is_checked(cli: Cli, tmp_path: Path) -> None:
    """`prices check` says everything that is wrong with a file, exit code 2, and is content with a right one."""
    file = tmp_path / "prices.yaml"
    file.write_text(
        "source: me\ndate: 2026-11-01\noffers:\n- {instanceType: a, onDemandUSD: '3.06'}\n", encoding="utf-8"
    )
    assert cli("prices", "check", "prices.yaml").out.startswith("prices.yaml: 1 offer")
    file.write_text("date: never\noffers:\n- {instanceType: a, onDemandUSD: '0'}\n", encoding="utf-8")
    run = cli("prices", "check", "prices.yaml")
    assert run.code == 2
    for words in ("source", "never", "zero"):
        assert words in run.err
    assert cli("prices", "check", "none.yaml").code == 2


def test_a_job_that_never_held_a_machine_has_a_receipt(cli: Cli, controller: FakeController) -> None:
    """Without a machine there is a total of nothing and no part; that nothing was priced is said."""
    job = controller.add(resource(phase="Failed", reason="NoCapacity", message="The gang needs 64 CPUs."))
    job["status"]["cost"] = {
        "totalUSD": "0.00",
        "usefulUSD": "0.00",
        "wastedUSD": {},
        "priceSources": [],
        "billed": False,
    }
    run = cli("wait", "sentiment", "-o", "receipt", "-q")
    assert run.code == 7
    assert run.out.count("$") == 1
    assert "No machine was held" in run.out
