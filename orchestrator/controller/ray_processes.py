"""The processes of a Ray of our own on this machine: how they are started, found again, and ended.

Every process of it inherits one variable that names its folder, `ORCHESTRATE_RAY`; so do the workers and what a user's
code starts there. By that variable, or by the logs that they hold open, all of them are found, also the ones whose parents are dead:
nothing depends on recorded numbers that may have passed to other programs, and nothing is ever ended by a bare name.

The Ray listens on loopback only and asks for a token. Nothing here imports ray.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.controller.home import Home
from orchestrator.domain.errors import EngineError, StorageError

if TYPE_CHECKING:
    import psutil

MARK = "ORCHESTRATE_RAY"
ROOT = Path("/tmp")  # noqa: S108 - Ray's sockets lie below, and the path of a Unix socket may have 107 bytes at most
OBJECT_STORE_BYTES = 200 * 2**20
"""Weights do not travel through Ray's object store; reports and specs do."""
START_SECONDS = 90
ROUNDS = 4
"""Looks for processes to kill; one that was being started during a look is found by the next."""
GONE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class RayInstance:
    """A running Ray: its folder and the address of its GCS."""

    folder: Path
    address: str


def folder_prefix(home: Home) -> str:
    """Start of the paths of the folders of this home's Rays; short, whatever the home's own path."""
    return str(ROOT / f"orchestrate-{hashlib.sha256(str(home.path).encode()).hexdigest()[:8]}-")


def token_file(home: Home) -> Path:
    """The file of the token of this home's Rays; made if there is none."""
    file = home.ray / "token"
    if not file.exists():
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as out:
            out.write(secrets.token_hex(32))
    return file


def connection(home: Home) -> dict[str, str]:
    """Variables that a process must have before it imports ray to join a Ray of this home: the token, and the only switch
    by which Ray keeps to loopback, so that it survives a laptop's change of networks."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_file(home)),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }


def begin_start(home: Home, cpus: int, environ: Mapping[str, str]) -> tuple[subprocess.Popen[str], Path]:
    """Begin to start a Ray; `finish_start` waits for it. In between the caller may import what it needs."""
    try:
        folder = Path(tempfile.mkdtemp(prefix=folder_prefix(home)))
    except OSError as error:
        raise StorageError(
            f"no folder can be made in {ROOT} ({error.strerror})", hint="Ray needs one for its sockets"
        ) from error
    command = [
        *(
            sys.executable,
            "-m",
            "ray.scripts.scripts",
            "start",
            "--head",
            "--port",
            "0",
            "--node-ip-address",
            "127.0.0.1",
        ),
        *("--include-dashboard", "false", "--include-log-monitor", "false", "--disable-usage-stats"),
        *("--min-worker-port", "0", "--max-worker-port", "0", "--object-store-memory", str(OBJECT_STORE_BYTES)),
        *("--temp-dir", str(folder), "--log-style", "record", "--log-color", "false"),
    ]
    if cpus:
        command += ["--num-cpus", str(cpus)]
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=_environment(environ, folder, home),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    return process, folder


def finish_start(process: subprocess.Popen[str], folder: Path) -> RayInstance:
    """Wait until Ray is up. Raises `EngineError` with what it said when it is not; the caller ends what is left of it."""
    try:
        said, _ = process.communicate(timeout=START_SECONDS)
    except subprocess.TimeoutExpired as error:
        process.kill()
        process.communicate()
        raise EngineError(
            f"Ray did not start within {START_SECONDS} s", hint=f"its logs are in {folder}/session_latest/logs"
        ) from error
    if process.returncode != 0:
        last = next((line.strip() for line in reversed(said.splitlines()) if line.strip()), "it said nothing")
        raise EngineError(f"Ray did not start: {last}", hint="`orchestrate doctor` checks what it needs")
    instance = instance_in(folder)
    if instance is None:
        raise EngineError(f"Ray started but left no address in {folder}")
    return instance


def instance_in(folder: Path) -> RayInstance | None:
    """The Ray of a folder, by the address that it wrote there."""
    try:
        address = (folder / "ray_current_cluster").read_text(encoding="ascii").strip()
    except OSError:
        return None
    return RayInstance(folder, address)


def find(home: Home) -> tuple[RayInstance | None, list[psutil.Process]]:
    """The Ray of this home if its head still stands (both its GCS and its raylet live), and every process of this home's
    Rays, whole or not."""
    found = _marked(folder_prefix(home))
    by_folder: dict[str, set[str]] = {}
    for folder, process in found:
        by_folder.setdefault(folder, set()).add(_name(process))
    whole = [folder for folder, names in by_folder.items() if {"gcs_server", "raylet"} <= names]
    instance = instance_in(Path(whole[0])) if len(whole) == 1 else None
    return instance, [process for _, process in found]


def end_all(home: Home) -> int:
    """End every process of this home's Rays, and remove their folders; how many processes there were. Raises
    `EngineError` when one cannot be ended."""
    import psutil

    processes = find(home)[1]
    count = 0
    for _ in range(ROUNDS):
        if not processes:
            break
        count = max(count, len(processes))
        # At once and without asking: what is worth keeping is in the journal and in checkpoints, which are written so that
        # they bear it. The raylet goes first, since it would start again, or mourn, what is ended before it.
        for process in sorted(processes, key=lambda process: _name(process) != "raylet"):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, timeout=GONE_SECONDS)
        processes = find(home)[1]
    if processes:
        numbers = ", ".join(str(process.pid) for process in processes)
        raise EngineError(f"processes of Ray do not end: {numbers}", hint="end them yourself, then try again")
    prefix = Path(folder_prefix(home))
    for folder in prefix.parent.glob(f"{prefix.name}*"):
        if folder.stat().st_uid == os.getuid():
            shutil.rmtree(folder, ignore_errors=True)
    return count


def _environment(environ: Mapping[str, str], folder: Path, home: Home) -> dict[str, str]:
    """What the processes of Ray, and so all workers, start with: the caller's variables without its secrets and without
    what would point Ray at another cluster."""
    kept = {
        name: value
        for name, value in environ.items()
        if name not in ("ORCHESTRATE_TOKEN", "RAY_ADDRESS", "RAY_AUTH_TOKEN")
    }
    package_root = str(Path(__file__).resolve().parents[2])
    path = [package_root, *kept.get("PYTHONPATH", "").split(os.pathsep)]
    return {
        **kept,
        **connection(home),
        MARK: str(folder),
        "PYTHONPATH": os.pathsep.join(part for part in path if part),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "AUTOSCALER_METRIC_PORT": "0",  # else two Rays on one machine want the same port
        # What a killed worker's own children leave behind ends with it.
        "RAY_kill_child_processes_on_worker_exit_with_raylet_subreaper": "true",
    }


def _marked(prefix: str) -> list[tuple[str, psutil.Process]]:
    """(folder, process) of every process of this user that carries the mark, except this one."""
    import psutil

    found: list[tuple[str, psutil.Process]] = []
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        with contextlib.suppress(psutil.Error, OSError):
            folder = process.environ().get(MARK) or _folder_of_output(process.pid, prefix)
            if folder.startswith(prefix):
                found.append((folder, process))
    return found


def _folder_of_output(pid: int, prefix: str) -> str:
    """The folder of the Ray that a process belongs to by what Ray calls it and by the logs that it holds open. (What
    Ray's processes call themselves is written over the place of their arguments and, at times, their environment.)"""
    if not Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::"):
        return ""
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            target = os.readlink(descriptor)
            if target.startswith(prefix):
                return "/".join(target.split("/")[: prefix.count("/") + 1])
    return ""


def _name(process: psutil.Process) -> str:
    import psutil

    with contextlib.suppress(psutil.Error):
        return process.name()
    return ""
