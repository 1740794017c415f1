"""The store's process, held by the coordinator: started beside everything else, and again whenever it dies."""

from __future__ import annotations

import contextlib
import selectors
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import IO

from orchestrator.domain.clock import NANOSECONDS_PER_SECOND, Clock

COMMAND = (sys.executable, "-m", "orchestrator.platforms.engines.native.store")
AGAIN_SECONDS = 1.0
"""Between two starts, so that one that cannot start does not eat a processor."""
MOST_STARTS_IN_VAIN = 5
LEAVE_SECONDS = 5.0


class StoreProcess:
    """See the module. All methods are called by the thread that runs the selector."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        clock: Clock,
        environ: Mapping[str, str],
        *,
        command: Sequence[str] = COMMAND,
        on_port: Callable[[int], None],
    ) -> None:
        """`on_port` is called whenever a store can be reached, with its port."""
        self._selector = selector
        self._clock = clock
        self._environ = environ
        self._command = command
        self._on_port = on_port
        self._process: subprocess.Popen[bytes] | None = None
        self._said = b""
        self._next_start_ns = 0
        self._in_vain = 0
        self.port: int | None = None

    @property
    def hopeless(self) -> bool:
        """It was started so often without ever being there that it will not be."""
        return self._in_vain >= MOST_STARTS_IN_VAIN

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def tick(self) -> None:
        """Called a few times a second: starts it, and sees when it has died."""
        process = self._process
        if process is not None and process.poll() is not None:
            self._forget(process)
        now_ns = self._clock.monotonic_ns()
        if self._process is None and now_ns >= self._next_start_ns and not self.hopeless:
            self._next_start_ns = now_ns + round(AGAIN_SECONDS * NANOSECONDS_PER_SECOND)
            self._start()

    def close(self) -> None:
        """End it, and wait until it is gone."""
        process = self._process
        if process is None:
            return
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        try:
            process.wait(LEAVE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._forget(process)

    def _start(self) -> None:
        self._in_vain += 1
        self._said = b""
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**self._environ, "PYTHONPATH": ":".join(part for part in sys.path if part)},
            start_new_session=True,  # a Ctrl-C in the terminal of a local job is not meant for it
        )
        self._selector.register(self._stdout(self._process), selectors.EVENT_READ, self._read)

    def _read(self, mask: int) -> None:
        process = self._process
        if process is None:
            return
        data = self._stdout(process).read1(4096)  # type: ignore[attr-defined]  # a BufferedReader, typed as IO
        if not data:
            self._selector.unregister(self._stdout(process))
            return
        self._said += data
        line, end, _ = self._said.partition(b"\n")
        if end and self.port is None:
            self.port, self._in_vain = int(line), 0
            self._on_port(self.port)

    def _forget(self, process: subprocess.Popen[bytes]) -> None:
        with contextlib.suppress(KeyError):  # it was unregistered at the end of what it said
            self._selector.unregister(self._stdout(process))
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        self._process, self.port = None, None

    @staticmethod
    def _stdout(process: subprocess.Popen[bytes]) -> IO[bytes]:
        assert process.stdout is not None
        return process.stdout
