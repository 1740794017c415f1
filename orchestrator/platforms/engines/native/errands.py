"""The coordinator's errands: what may take a while is done one after the other by a thread of its own."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from orchestrator.domain.errors import OrchestrateError


class Errands:
    """See the module. `run` and `close` are for one thread."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="errands", daemon=True)
        self._thread.start()
        self.failure: str | None = None
        """What went wrong first."""

    def run(self, errand: Callable[[], None]) -> None:
        """Some time, after those before."""
        self._queue.put(errand)

    def close(self) -> None:
        """Wait until all are done."""
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (errand := self._queue.get()) is not None:
            try:
                errand()
            except OrchestrateError as error:
                self.failure = self.failure or str(error)
            except Exception as error:  # noqa: BLE001 - the thread's edge: told, and the attempt ends with it
                self.failure = self.failure or f"{type(error).__name__}: {error}"
