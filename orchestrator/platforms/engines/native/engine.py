"""The elastic engine behind the `Engine` port: an attempt outlives the loss of its workers.

The driver's part is here and in `coordinator`; what decides is `gang`; agents are brought by a launcher.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Mapping, Sequence

from orchestrator.domain.clock import Clock
from orchestrator.platforms.engines.base import Listener, Outcome, RunRequest, WishBoard
from orchestrator.platforms.engines.native import store_process
from orchestrator.platforms.engines.native.coordinator import Coordinator, Launcher
from orchestrator.platforms.engines.native.gang import Gang
from orchestrator.platforms.engines.native.messages import Address
from orchestrator.platforms.engines.native.terms import Judgements, Limits, Terms

Judge = Callable[[Terms], Judgements]


class NativeEngine:
    """See the module. Safe over threads, as the port says; one attempt at a time."""

    name = "native"

    def __init__(
        self,
        launcher: Callable[[RunRequest], Launcher],
        clock: Clock,
        *,
        environ: Mapping[str, str],
        host: str = "127.0.0.1",
        port: int = 0,
        token: str | None = None,
        adopt: bool = False,
        limits: Limits | None = None,
        judge: Judge = Judgements.learned,
        store_command: Sequence[str] = store_process.COMMAND,
    ) -> None:
        """`launcher` makes the one of an attempt. `host` is where agents reach this process. `environ` is what the store's
        process begins with. `token` and `adopt` are for a driver that comes back to a world that runs: the token that its
        agents know, and that they are waited for before a world is planned."""
        self._launcher = launcher
        self._clock = clock
        self._environ = environ
        self._host = host
        self._port = port
        self._token = token
        self._adopt = adopt
        self._limits = limits or Limits()
        self._judge = judge
        self._store_command = store_command
        self._lock = threading.Lock()
        self._running: Coordinator | None = None
        self._address: Address | None = None

    def run(self, request: RunRequest, listener: Listener, wishes: WishBoard) -> Outcome:
        terms = Terms.of(request)
        judgements = self._judge(terms)
        gang = Gang(
            terms,
            self._clock.monotonic_ns(),
            target=wishes.size or request.size or request.workers,
            limits=self._limits,
            judgements=judgements,
            prefix=f"w{secrets.token_hex(3)}-",
            adopt=self._adopt,
        )
        self._adopt = False
        coordinator = Coordinator(
            request,
            listener,
            wishes,
            self._launcher(request),
            self._clock,
            gang,
            judgements,
            host=self._host,
            port=self._port,
            token=self._token or secrets.token_urlsafe(24),
            environ=self._environ,
            store_command=self._store_command,
            on_address=self._listens,
        )
        with self._lock:
            self._running = coordinator
        try:
            return coordinator.run()
        finally:
            with self._lock:
                self._running = None

    def kill(self) -> None:
        with self._lock:
            if self._running is not None:
                self._running.kill("the gang was killed")

    @property
    def address(self) -> Address | None:
        """Where agents reach the coordinator of the attempt that runs; None without one."""
        return self._address

    def _listens(self, address: Address | None) -> None:
        self._address = address
