"""What every engine does alike for one rank of a gang, in the rank's own process: its surroundings, its words, its end.

Whatever the worker loop raises is turned into plain strings here (`classify`), where the exception and its traceback are
still whole; exceptions of the user's own types need not survive pickling.

Limits: lines are caught where Python writes them (`sys.stdout`, `sys.stderr`, hence `logging`); what native code writes
straight to its file descriptors stays where the process's own output goes.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

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
