"""The guards of the root conftest are not decoration: each fails a test that leaves something behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import THREAD_GRACE_SECONDS

LEAKY = """
import asyncio
import threading


def test_thread_left_running():
    threading.Thread(target=threading.Event().wait, args=(1.5,), name="straggler").start()


def test_thread_that_is_just_ending():
    threading.Thread(target=threading.Event().wait, args=(0.05,)).start()


def test_task_left_pending():
    async def forgetful():
        task = asyncio.get_running_loop().create_task(asyncio.Event().wait())
        await asyncio.sleep(0)
        assert not task.done()

    asyncio.run(forgetful())


def test_all_awaited():
    async def tidy():
        await asyncio.get_running_loop().create_task(asyncio.sleep(0))

    asyncio.run(tidy())
"""


@pytest.mark.integration
def test_leaks_fail_their_own_test_and_no_other(tmp_path: Path, repository: Path) -> None:
    """A thread left running and a task left pending each fail that test; tests that tidy up pass."""
    conftest = (repository / "tests" / "conftest.py").read_text(encoding="utf-8")
    impatient = conftest.replace(f"THREAD_GRACE_SECONDS = {THREAD_GRACE_SECONDS}", "THREAD_GRACE_SECONDS = 0.5")
    assert impatient != conftest
    (tmp_path / "conftest.py").write_text(impatient, encoding="utf-8")
    (tmp_path / "test_leaky.py").write_text(LEAKY, encoding="utf-8")
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            "-rEp",
            "-q",
            f"--rootdir={tmp_path}",
            str(tmp_path),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    errors = [line for line in run.stdout.splitlines() if line.startswith("ERROR ")]
    assert run.returncode == 1, run.stdout + run.stderr
    assert "4 passed, 2 errors" in run.stdout, run.stdout
    assert [line.partition("::")[2].partition(" ")[0] for line in errors] == [
        "test_thread_left_running",
        "test_task_left_pending",
    ]
    assert "threads left running: straggler" in run.stdout
    assert "asyncio tasks left pending" in run.stdout
