"""The parts of the controller's actor that need no Ray, and what joining an older Ray says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.controller import boot, local, ray_processes
from orchestrator.controller.home import Home
from orchestrator.controller.ray_processes import RayInstance
from orchestrator.controller.settings import resolve
from orchestrator.domain.clock import ManualClock
from orchestrator.domain.errors import WrongServer

pytestmark = pytest.mark.integration


class Busy:
    """A controller as the idle watch sees it."""

    def __init__(self) -> None:
        self.active = 0

    def info(self) -> dict[str, Any]:
        return {"activeJobs": self.active}


def test_idle_is_no_request_and_no_active_job_for_the_whole_time() -> None:
    """Requests and active jobs each begin the wait anew."""
    from orchestrator.controller.actor import IdleWatch

    clock, controller = ManualClock(), Busy()
    idle = IdleWatch(controller, clock)  # type: ignore[arg-type]
    clock.advance(14 * 60)
    assert not idle.idle_for(15)
    idle.noticed()
    clock.advance(14 * 60)
    assert not idle.idle_for(15)
    controller.active = 1
    clock.advance(60 * 60)
    assert not idle.idle_for(15)
    controller.active = 0
    clock.advance(15 * 60)
    assert idle.idle_for(15)


def test_a_ray_of_another_version_is_refused(tmp_path: Path) -> None:
    """Joining a Ray that another version started names both versions and the remedy."""
    home = Home(tmp_path)
    facts = {"url": "http://127.0.0.1:1", "pid": 1, "engine": "ray-train", "ray": {"version": "2.59.0"}}
    local.write_server_file(home, facts)
    with pytest.raises(WrongServer, match=r"version 2\.59\.0.*server stop"):
        boot._same_version(home)


def test_whatever_stops_a_start_leaves_no_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt between Ray's start and the controller's ends what was started; a start that succeeds ends nothing."""
    ended: list[Path] = []
    monkeypatch.setattr(ray_processes, "find", lambda home: (None, []))
    monkeypatch.setattr(ray_processes, "begin_start", lambda home, cpus, environ: (None, tmp_path))
    monkeypatch.setattr(ray_processes, "finish_start", lambda process, folder: RayInstance(folder, "127.0.0.1:1"))
    monkeypatch.setattr(ray_processes, "end_all", lambda home: ended.append(home.path))
    monkeypatch.setattr(boot, "_start_controller", lambda settings, home, instance: "http://127.0.0.1:2")
    settings = resolve({"ORCHESTRATE_HOME": str(tmp_path / "home")}, tmp_path, {})
    assert boot.boot(settings, {}) == "http://127.0.0.1:2"
    assert ended == []

    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(boot, "_import_meanwhile", interrupted)
    with pytest.raises(KeyboardInterrupt):
        boot.boot(settings, {})
    assert ended == [tmp_path / "home"]
