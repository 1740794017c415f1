"""The checks of `orchestrate doctor`: each says what it saw, and how to mend what is wrong.

Packages are looked up by their metadata, never imported. A check that cannot be made says so instead of failing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.domain.errors import InvalidSpec, OrchestrateError
from orchestrator.domain.quantities import format_bytes

if TYPE_CHECKING:
    from orchestrator.cli.context import Context

GIB = 1 << 30
SHARED_MEMORY = "/dev/shm"  # noqa: S108 - looked at, not written to
SECONDS_PER_DAY = 86_400
STALE_LOCK_SECONDS = 600
STALE_PRICES_DAYS = 90
NEEDED = {"ray": "2.60", "torch": None, "deepspeed": "0.19", "transformers": None, "fastapi": None, "uvicorn": None}
"""Packages that running jobs here needs, and the minor version where only that one will do."""


class Verdict(StrEnum):
    OK = "ok"
    INFO = "info"
    WARN = "warn"
    FAIL = "FAIL"


@dataclass(frozen=True, slots=True)
class Finding:
    check: str
    verdict: Verdict
    what: str
    fix: str = ""


def examine(context: Context) -> Iterator[Finding]:
    """All findings, in the order of their importance. Never raises for what it finds."""
    yield _python()
    try:
        settings = context.settings
    except InvalidSpec as error:
        yield Finding("settings", Verdict.FAIL, "; ".join(map(str, error.problems)), "correct or remove that line")
        return
    except OrchestrateError as error:
        yield Finding("settings", Verdict.FAIL, error.what, error.hint or "correct it")
        return
    local = not settings.url and settings.engine != "fake"
    yield from _packages(needed=local)
    home = settings.home_path
    checks: list[Callable[[], Finding]] = [lambda: _home(home), lambda: _disk(home), lambda: _controller(context)]
    if local:
        checks += [_shared_memory, _memory, _open_files, lambda: _compiler(context), lambda: _locks(context)]
    checks += [lambda: _prices(context)]
    for check in checks:
        yield check()


def _python() -> Finding:
    import sys

    version = ".".join(map(str, sys.version_info[:3]))
    return Finding("python", Verdict.OK, f"{version}, {sys.executable}")


def _packages(*, needed: bool) -> Iterator[Finding]:
    from importlib.metadata import PackageNotFoundError, version

    found: list[str] = []
    missing: list[str] = []
    for package, minor in NEEDED.items():
        try:
            present = version(package)
        except PackageNotFoundError:
            missing.append(package)
            continue
        found.append(f"{package} {present}")
        if minor is not None and needed and not present.startswith(f"{minor}."):
            what = f"{package} {present} is here; {minor} is the one that was tried"
            yield Finding("packages", Verdict.FAIL, what, f"pip install '{package}=={minor}.*'")
    if missing and needed:
        fix = "pip install 'orchestrate[train]', or set ORCHESTRATE_URL to a controller that runs elsewhere"
        yield Finding("packages", Verdict.FAIL, f"not installed: {', '.join(missing)}", fix)
    elif missing:
        yield Finding("packages", Verdict.INFO, f"not installed, and not needed: {', '.join(missing)}")
    if found:
        yield Finding("packages", Verdict.OK, ", ".join(found))


def _existing(path: Path) -> Path:
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def _home(home: Path) -> Finding:
    import os
    import tempfile

    fix = "set ORCHESTRATE_HOME to a folder that you can write to"
    place = _existing(home)
    if not place.is_dir():
        return Finding("home", Verdict.FAIL, f"{place} is not a folder", fix)
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        return Finding("home", Verdict.FAIL, f"{place} cannot be written ({error.strerror or error})", fix)
    if place != home:
        return Finding("home", Verdict.OK, f"{home} will be made")
    stat = home.stat()
    if stat.st_uid != os.getuid():
        return Finding("home", Verdict.FAIL, f"{home} belongs to another user", fix)
    if stat.st_mode & 0o077:
        return Finding("home", Verdict.WARN, f"others can look into {home}", f"chmod 700 {home}")
    return Finding("home", Verdict.OK, str(home))


def _disk(home: Path) -> Finding:
    import shutil

    place = _existing(home)
    try:
        usage = shutil.disk_usage(place)
    except OSError as error:
        return Finding("disk", Verdict.WARN, f"{place}: cannot tell ({error.strerror or error})", "look with df")
    what = f"{format_bytes(usage.free)} free at {place}"
    fix = "make room, or set ORCHESTRATE_HOME to a larger disk; checkpoints go there"
    if usage.free < GIB:
        return Finding("disk", Verdict.FAIL, what, fix)
    return Finding("disk", Verdict.WARN, what, fix) if usage.free < 10 * GIB else Finding("disk", Verdict.OK, what)


def _controller(context: Context) -> Finding:
    settings = context.settings
    where = settings.url or f"{settings.host}:{settings.port}"
    try:
        client = context.client_if_running(timeout_seconds=1.0)
        if client is not None:
            info = client.info()
            what = f"version {info.get('version')} answers at {where}, engine {info.get('engine')}"
            return Finding("controller", Verdict.OK, what)
    except OrchestrateError as error:
        return Finding("controller", Verdict.FAIL, error.what, error.hint or "orchestrate server status")
    import socket

    with socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            what = f"none runs, and it could not listen at {where} ({error.strerror or error})"
            fix = f"see who does with `ss -ltnp 'sport = :{settings.port}'`, or set ORCHESTRATE_PORT to another port"
            return Finding("controller", Verdict.FAIL, what, fix)
    return Finding("controller", Verdict.OK, f"none runs; port {settings.port} is free, submit starts one")


def _shared_memory() -> Finding:
    import shutil

    try:
        usage = shutil.disk_usage(SHARED_MEMORY)
    except OSError:
        return Finding("shared memory", Verdict.INFO, f"there is no {SHARED_MEMORY}; Ray uses files instead")
    what = f"{SHARED_MEMORY} has {format_bytes(usage.total)}, {format_bytes(usage.free)} free"
    if usage.total < GIB:
        fix = "in a container: --shm-size=2g; Ray is slower without"
        return Finding("shared memory", Verdict.WARN, what, fix)
    return Finding("shared memory", Verdict.OK, what)


def _memory() -> Finding:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        facts = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}
        available = facts["MemAvailable"]
    except (OSError, KeyError, ValueError, IndexError):
        return Finding("memory", Verdict.INFO, "cannot tell how much is free")
    what = f"{format_bytes(available)} available"
    if available < 2 * GIB:
        return Finding("memory", Verdict.WARN, what, "end something large; Ray and two workers take about 2 GiB")
    return Finding("memory", Verdict.OK, what)


def _open_files() -> Finding:
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < 1024:
        return Finding("open files", Verdict.WARN, f"at most {soft}", "ulimit -n 65536; Ray opens many")
    return Finding("open files", Verdict.OK, "no limit" if soft == resource.RLIM_INFINITY else f"at most {soft}")


def _compiler(context: Context) -> Finding:
    import shutil

    path = context.environ.get("PATH")
    found = shutil.which("c++", path=path) or shutil.which("g++", path=path) or shutil.which("clang++", path=path)
    if found is None:
        return Finding("C++ compiler", Verdict.INFO, "none; DeepSpeed's portable operators are used")
    return Finding("C++ compiler", Verdict.INFO, f"{found}; needed only for DeepSpeed's compiled operators")


def _locks(context: Context) -> Finding:
    """A build that was killed leaves its lock, and every later run waits for it in silence."""
    folder = Path(context.environ.get("TORCH_EXTENSIONS_DIR") or Path.home() / ".cache" / "torch_extensions")
    now_seconds = context.clock.now_ns() / 1e9
    stale = []
    for pattern in ("*/lock", "*/*/lock"):
        for lock in folder.glob(pattern):
            try:
                if now_seconds - lock.stat().st_mtime > STALE_LOCK_SECONDS:
                    stale.append(str(lock))
            except OSError:
                continue
    if stale:
        return Finding(
            "build locks", Verdict.WARN, f"left by a build that was killed: {', '.join(stale)}", f"rm {' '.join(stale)}"
        )
    return Finding("build locks", Verdict.OK, f"none in {folder}")


def _prices(context: Context) -> Finding:
    from datetime import date

    from orchestrator.platforms.prices import load_prices

    file = context.settings.prices
    try:
        book = load_prices(Path(file).expanduser() if file else None)
    except InvalidSpec as error:
        return Finding("prices", Verdict.FAIL, str(error.problems[0]), f"orchestrate prices check {file}")
    if not book.billed:
        what = f"the example is in force ({book.source}, {book.as_of})"
        return Finding("prices", Verdict.INFO, what, "for real bills set ORCHESTRATE_PRICES to your own price file")
    age_days = (
        int(context.clock.now_ns() / 1e9 / SECONDS_PER_DAY) - (date.fromisoformat(book.as_of) - date(1970, 1, 1)).days
    )
    what = f"{book.source}, {book.as_of}, {age_days} days old"
    if age_days > STALE_PRICES_DAYS:
        return Finding("prices", Verdict.WARN, what, f"bring {file} up to date")
    return Finding("prices", Verdict.OK, what)
