"""What runs inside a Ray worker process: one rank of a gang, its link to the driver, and how its end is told.

The link hands batches of events to the driver a few times a second and brings back what is wished for, by a call on the
driver's actor. (`ray.train.report` would be the usual road, but its one-slot queue is emptied once a poll and holds
training up for seconds.) A rank whose driver is gone ends its own process: nobody is left to hear it, and its machine is
booked on a job that will be started again elsewhere.

Whatever the worker loop raises is turned into a `RankFailed` of plain strings here, where the exception and its traceback
are still whole; exceptions of the user's own types need not survive pickling.

Limits: lines are caught where Python writes them (`sys.stdout`, `sys.stderr`, hence `logging`); what native code writes
straight to its file descriptors stays in Ray's own worker log.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from orchestrator.domain.clock import Clock, SystemClock
from orchestrator.platforms.engines.base import Wishes

EXCHANGE_SECONDS = 0.15
"""Time between two batches of a rank. Bounds how late a wish is seen; far below what a person notices."""
CLOSE_SECONDS = 10.0
MAX_KEPT_LINES = 20_000
"""Log lines kept while the driver does not take them; beyond it the oldest are let go, and their number is told."""
MAX_SENT_LINES = 2_000
DRIVER_GONE = 70
"""Exit status of a rank that ended itself because its driver is gone."""

PEER_GONE = ("DistBackendError", "DistNetworkError", "DistStoreError")
PEER_GONE_WORDS = (
    "closed by peer",
    "connection reset",
    "connection refused",
    "gloo",
    "nccl",
    "broken pipe",
    "socket timeout",
)


class RankFailed(Exception):
    """How a rank failed, in plain values. `collateral`: the rank lost its peers, so the cause is probably elsewhere."""

    def __init__(self, rank: int, reason: str, message: str, collateral: bool, at_ns: int) -> None:
        super().__init__(rank, reason, message, collateral, at_ns)
        self.rank = rank
        self.reason = reason
        self.message = message
        self.collateral = collateral
        self.at_ns = at_ns

    def __str__(self) -> str:
        return f"rank {self.rank}: {self.reason}: {self.message}"


Exchange = Callable[[int, Sequence[Mapping[str, Any]]], Wishes | None]
"""Hands over a batch (the number of its first event, the events); the wishes, or None when there was no answer yet and
the batch should be sent again. Raises `DriverGone`."""


class DriverGone(Exception):
    """Nobody hears this rank any more."""


class RayLink:
    """The `Link` of one rank (see orchestrator.training.link). A thread of its own does the talking."""

    def __init__(self, rank: int, exchange: Exchange, clock: Clock) -> None:
        self.rank = rank
        self._exchange = exchange
        self._clock = clock
        self._changed = threading.Condition()
        self._events: deque[Mapping[str, Any]] = deque()
        self._lines: deque[str] = deque()
        self._lines_dropped = 0
        self._sent = 0
        self._wishes = Wishes()
        self._closing = False
        self._thread = threading.Thread(target=self._talk, name="link", daemon=True)
        self._thread.start()

    def send(self, event: Mapping[str, Any]) -> None:
        with self._changed:
            self._events.append(event)

    def say(self, lines: Sequence[str]) -> None:
        """Log lines; they travel together as `log` events."""
        with self._changed:
            self._lines.extend(lines)
            while len(self._lines) > MAX_KEPT_LINES:
                self._lines.popleft()
                self._lines_dropped += 1

    def wishes(self) -> Wishes:
        return self._wishes

    def close(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(CLOSE_SECONDS)

    def _talk(self) -> None:
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._closing, timeout=EXCHANGE_SECONDS)
                    last = self._closing
                    batch = self._batch()
                reply = None
                while reply is None:
                    reply = self._exchange(self._sent, batch)
                self._sent += len(batch)
                self._wishes = reply
                if last and not self._events and not self._lines:
                    return
        except DriverGone:
            os._exit(DRIVER_GONE)

    def _batch(self) -> list[Mapping[str, Any]]:
        batch = list(self._events)
        self._events.clear()
        if self._lines:
            lines = [self._lines.popleft() for _ in range(min(len(self._lines), MAX_SENT_LINES))]
            if self._lines_dropped:
                lines.insert(
                    0, f"({self._lines_dropped} lines were dropped here: they came faster than they could be sent)"
                )
                self._lines_dropped = 0
            batch.append({"kind": "log", "rank": self.rank, "lines": lines, "at_ns": self._clock.now_ns()})
        return batch


class Tee(io.TextIOBase):
    """A text stream that passes whole lines on to `say` as well."""

    def __init__(self, stream: TextIO, say: Callable[[Sequence[str]], None]) -> None:
        self._stream = stream
        self._say = say
        self._lock = threading.Lock()
        self._begun = ""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    def write(self, text: str) -> int:
        self._stream.write(text)
        with self._lock:
            *lines, self._begun = (self._begun + text).split("\n")
        if lines:
            self._say([_last_state(line) for line in lines])
        return len(text)

    @property
    def buffer(self) -> _Bytes:
        """What programs that write bytes to `sys.stdout.buffer` get."""
        return _Bytes(self)

    def finish(self) -> None:
        """Pass on the line that was begun and never ended."""
        with self._lock:
            line, self._begun = self._begun, ""
        if line:
            self._say([_last_state(line)])

    def flush(self) -> None:
        self._stream.flush()

    def fileno(self) -> int:
        return self._stream.fileno()

    def isatty(self) -> bool:
        return False

    def writable(self) -> bool:
        return True


class _Bytes(io.RawIOBase):
    """Bytes for a `Tee`: read as UTF-8, with what is none replaced."""

    def __init__(self, tee: Tee) -> None:
        self._tee = tee

    def write(self, data: Any) -> int:
        self._tee.write(bytes(data).decode("utf-8", errors="replace"))
        return len(data)

    def flush(self) -> None:
        self._tee.flush()

    def writable(self) -> bool:
        return True


@contextlib.contextmanager
def output_heard(say: Callable[[Sequence[str]], None]) -> Iterator[None]:
    """Within, what Python code writes to stdout and stderr is heard by `say` too."""
    out, err = Tee(sys.stdout, say), Tee(sys.stderr, say)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            yield
    finally:
        out.finish()
        err.finish()


def _last_state(line: str) -> str:
    """A progress bar rewrites its line with carriage returns; what it came to is what stays."""
    return line.rstrip("\r").rpartition("\r")[2]


def run_rank(worker_loop: str, assignment: Mapping[str, Any], env: Mapping[str, str], exchange: Exchange) -> Any:
    """Run the worker loop named `module:function` on this rank, in an environment made by `prepare`."""
    clock = SystemClock()
    rank = int(os.environ["RANK"])  # noqa: TID251 - the edge of a worker's process
    link = RayLink(rank, exchange, clock)
    try:
        with output_heard(link.say):
            try:
                prepare(assignment, env)
                module, _, function = worker_loop.partition(":")
                return getattr(importlib.import_module(module), function)(assignment, link)
            except BaseException as error:  # noqa: BLE001 - the rank's edge: told by name, whatever the user's code raises
                link.say("".join(traceback.format_exception(error)).splitlines())
                raise classify(rank, error, clock.now_ns()) from None
    finally:
        link.close()


def prepare(assignment: Mapping[str, Any], env: Mapping[str, str]) -> None:
    """Set this process up for the job: its variables, its working folder, and modules found there."""
    environ = os.environ  # noqa: TID251 - the edge of a worker's process
    environ["OMP_NUM_THREADS"] = str(assignment.get("threads", 1))
    environ["TOKENIZERS_PARALLELISM"] = "false"
    environ.update(env)
    if working_dir := assignment.get("working_dir"):
        os.chdir(working_dir)
        sys.path.insert(0, str(working_dir))
        path = [str(working_dir), *environ.get("PYTHONPATH", "").split(os.pathsep)]
        environ["PYTHONPATH"] = os.pathsep.join(part for part in path if part)


def classify(rank: int, error: BaseException, at_ns: int) -> RankFailed:
    """What to tell of an exception. One that carries a `reason` and a `message` (as the training code's WorkerFailed
    does; it may be the cause of another) names its reason itself, any other is the application's."""
    chain = _chain(error)
    for link in chain:
        reason, message = getattr(link, "reason", None), getattr(link, "message", None)
        if isinstance(reason, str) and isinstance(message, str):
            hint = getattr(link, "hint", None)
            collateral = reason == "ApplicationError" and any(map(_lost_its_peers, chain))
            return RankFailed(rank, str(reason), f"{message}; {hint}" if hint else message, collateral, at_ns)
    if isinstance(error, MemoryError):
        return RankFailed(rank, "OutOfMemory", f"MemoryError: {error}", False, at_ns)
    last_line = traceback.format_exception_only(error)[-1].strip()
    message = f"{last_line} ({_place(error)})"
    return RankFailed(rank, "ApplicationError", message, any(map(_lost_its_peers, chain)), at_ns)


def _chain(error: BaseException) -> list[BaseException]:
    chain: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and following not in chain:
        chain.append(following)
        following = following.__cause__ or (None if following.__suppress_context__ else following.__context__)
    return chain


def _lost_its_peers(error: BaseException) -> bool:
    if type(error).__name__ in PEER_GONE:
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in PEER_GONE_WORDS)


def _place(error: BaseException) -> str:
    """File and line where the user's own code was last; the innermost frame when there is none of it. Code that cannot be
    read has no frame: the line that is wrong."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    here = str(Path(__file__).resolve().parents[2])
    own = [
        f
        for f in frames
        if "site-packages" not in f.filename and not f.filename.startswith((here, sys.base_prefix, "<"))
    ]
    if not (own or frames):
        return "no frame"
    frame = (own or frames)[-1]
    return f"{frame.filename}:{frame.lineno} in {frame.name}"
