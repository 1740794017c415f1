"""Following a job: wait for its changes, show them, and outlive the controller's deaths.

A controller of this machine that vanishes is started again, as often as needed while that works; one that runs elsewhere
is asked again for a bounded time. Ctrl-C detaches: the job goes on, and what is said then tells how to come back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from orchestrator.cli.progress import REDRAW_SECONDS, Display
from orchestrator.cli.view import RESTING, JobView
from orchestrator.domain.errors import Conflict, ControllerUnreachable, EngineError, ExitCode, WaitTimeout, WrongServer

if TYPE_CHECKING:
    from orchestrator.cli.context import Context
    from orchestrator.controller.client import Client

LONG_POLL_SECONDS = 10.0
LIVE_POLL_SECONDS = 1.0
"""On a terminal the time left and the dollars move even when nothing else does."""
PATIENCE_SECONDS = 120.0
"""How long a controller that runs elsewhere may stay away."""
MOST_STARTS_IN_A_ROW = 3


class Follower:
    """Looks at one job until it is told to stop."""

    def __init__(
        self, context: Context, client: Client, resource: Mapping[str, Any], *, display: Display | None
    ) -> None:
        self._context = context
        self._client = client
        self._job = JobView(resource)
        self._display = display

    @property
    def client(self) -> Client:
        """The client that worked last; a restarted controller may have another address."""
        return self._client

    def until(self, done: Callable[[JobView], bool], timeout_seconds: float | None = None) -> JobView:
        """Follow until `done`. Raises `WaitTimeout`, `Conflict` when the name has passed to another job, and whatever
        the controller refuses with."""
        clock = self._context.clock
        start_ns = clock.monotonic_ns()
        if self._display is not None:
            self._display.update(self._job)
        while not done(self._job):
            asked_ns = clock.monotonic_ns()
            left = None if timeout_seconds is None else timeout_seconds - (asked_ns - start_ns) / 1e9
            if left is not None and left <= 0:
                if self._display is not None:
                    self._display.clear()
                raise WaitTimeout(
                    f"{self._job.full_name} is {self._job.phase} after {timeout_seconds:g} s",
                    hint="wait longer with --timeout, or look with `orchestrate status`",
                )
            live = self._display is not None and self._context.err.isatty()
            poll = LIVE_POLL_SECONDS if live else LONG_POLL_SECONDS
            job = JobView(self._look(poll if left is None else min(poll, left)))
            if self._job.uid and job.uid != self._job.uid:
                raise Conflict(
                    f"{self._job.full_name} was submitted again meanwhile, as another job ({job.uid})",
                    hint=f"follow that one with `orchestrate status {self._job.full_name} -w`",
                )
            self._job = job
            if self._display is not None:
                self._display.update(job)
            if not done(job):
                # A busy job changes at every step; nobody can look faster than this.
                self._context.pause(REDRAW_SECONDS - (clock.monotonic_ns() - asked_ns) / 1e9)
        if self._display is not None:
            self._display.clear()
        return self._job

    def _look(self, wait_seconds: float) -> Mapping[str, Any]:
        try:
            return self._get(wait_seconds)
        except (ControllerUnreachable, WrongServer) as gone:
            return self._reconnect(gone)

    def _get(self, wait_seconds: float) -> Mapping[str, Any]:
        job = self._job
        return self._client.get(job.namespace, job.name, after_version=job.version, wait_seconds=wait_seconds)

    def _reconnect(self, gone: Exception) -> Mapping[str, Any]:
        if self._display is not None:
            self._display.clear()
        if self._context.remote:
            return self._ask_again(gone)
        self._context.say(f"The controller is gone ({gone}). Bringing it back; the journal knows the job.")
        for start in range(1, MOST_STARTS_IN_A_ROW + 1):
            try:
                self._client = self._context.client(start=True)
                return self._get(0)
            except (ControllerUnreachable, EngineError):
                if start == MOST_STARTS_IN_A_ROW:
                    raise
                self._context.pause(float(start))
        raise gone

    def _ask_again(self, gone: Exception) -> Mapping[str, Any]:
        clock = self._context.clock
        start_ns = clock.monotonic_ns()
        self._context.say(f"The controller is gone ({gone}). Asking again for {PATIENCE_SECONDS:.0f} s.")
        delay = 0.5
        while True:
            self._context.pause(delay)
            try:
                return self._get(0)
            except (ControllerUnreachable, WrongServer):
                if (clock.monotonic_ns() - start_ns) / 1e9 >= PATIENCE_SECONDS:
                    raise
                delay = min(delay * 2, 8.0)


def rests(job: JobView) -> bool:
    """Nothing more happens to the job by itself."""
    return job.phase in RESTING


def detach_notice(context: Context, resource: Mapping[str, Any]) -> str:
    """What Ctrl-C says while a job is followed."""
    name = context.short(resource)
    return (
        f"Detached; {name} goes on without this terminal.\n"
        f"  come back   orchestrate status {name} -w\n"
        f"  logs        orchestrate logs {name} -f\n"
        f"  end it      orchestrate cancel {name}"
    )


def outcome_code(job: JobView) -> int:
    """The exit code of a job's outcome; 0 while it has none."""
    if job.phase == "Succeeded" or not (job.ended or job.phase == "Suspended"):
        return int(ExitCode.OK)
    if job.phase == "Cancelled":
        return int(ExitCode.CANCELLED)
    from orchestrator.lifecycle.reasons import TerminationReason

    try:
        return int(TerminationReason(job.reason).consequence.exit_code)
    except ValueError:
        return int(ExitCode.JOB_FAILED)
