"""How long a step takes a rank by itself: the time in which it waited for no other rank.

All ranks of a gang wait for the slowest, so only this says which one is slow. It is a step's time less the time in which this
rank's thread was blocked in collectives. Those are heard at one place: `wait` of torch's `Work`, through which every blocking
collective of `torch.distributed` goes, whoever calls it (DeepSpeed at every ZeRO stage, its overlapped ones too, and ours). A
collective costs two looks at the clock more.

Only on a CPU (gloo). NCCL's collectives return at once and are waited for by the GPU's stream: what the host waits for then is its
own GPU as well as the others, and nothing tells them apart. So nothing is told there, and no rank of a gang on GPUs is found slow.
What C++ waits for by itself is not seen either: a rank of `DistributedDataParallel` seems to work while it waits, as all do.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from orchestrator.domain.clock import NANOSECONDS_PER_SECOND, Clock


class Waits:
    """Nanoseconds for which one thread waited in collectives since this was made in it."""

    def __init__(self, clock: Clock) -> None:
        self.ns = 0
        self._clock = clock
        self._thread = threading.get_ident()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """What is done here is waiting for others."""
        began_ns = self._clock.monotonic_ns()
        try:
            yield
        finally:
            if threading.get_ident() == self._thread:
                self.ns += self._clock.monotonic_ns() - began_ns


_heard: list[Waits] = []
"""That of the present run in this process, for torch's class is the process's too."""


def hear(torch: Any, waits: Waits) -> None:
    """Count torch's blocking collectives in `waits` from now on, and in no other."""
    _heard[:] = [waits]
    work = torch.distributed.Work
    wait: Callable[..., Any] = work.wait
    if getattr(wait, "heard", False):
        return

    def heard(self: Any, *args: Any, **more: Any) -> Any:
        with _heard[0].waiting():
            return wait(self, *args, **more)

    heard.heard = True  # type: ignore[attr-defined]
    work.wait = heard


class OwnWork:
    """Measures steps, one after the other, and hands each one's own work to `tell`; None: nobody wants to know."""

    def __init__(self, tell: Callable[[float], object] | None, clock: Clock) -> None:
        self._tell = tell
        self._clock = clock
        self._waits: Waits | None = None
        self._began: tuple[int, int] | None = None

    def listen(self, torch: Any, device: str) -> None:
        """Once, in the thread that makes the steps."""
        if self._tell is not None and device == "cpu":
            self._waits = Waits(self._clock)
            hear(torch, self._waits)

    def begin(self) -> None:
        """A step begins."""
        if self._waits is not None:
            self._began = self._clock.monotonic_ns(), self._waits.ns

    def drop(self) -> None:
        """What is done now is no step's work; this one is not told."""
        self._began = None

    def end(self) -> None:
        """It is over. To be called before the step is reported."""
        if self._waits is None or self._tell is None or self._began is None:
            return
        (began_ns, waited_ns), self._began = self._began, None
        own_ns = self._clock.monotonic_ns() - began_ns - (self._waits.ns - waited_ns)
        self._tell(max(0, own_ns) / NANOSECONDS_PER_SECOND)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """What is done here is waiting for others, outside of collectives."""
        if self._waits is None:
            yield
            return
        with self._waits.waiting():
            yield
