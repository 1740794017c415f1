"""What the shell is to do after a transition. `HoldMachines`, `ReleaseMachines`, `ReleaseSlots`, `BookActivity` and
`SettleWork` are ledger entries and go into the same commit as the new state; the others are carried out after the commit,
and doing one twice must do no harm.

The machines of an elastic job are held and released as its engine tells of slots, so there is no command that holds them."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.lifecycle.state import Activity


@dataclass(frozen=True, slots=True)
class Command:
    pass


@dataclass(frozen=True, slots=True)
class HoldMachines(Command):
    """From now on `workers` machines are paid for by this job."""

    workers: int


@dataclass(frozen=True, slots=True)
class ReleaseMachines(Command):
    pass


@dataclass(frozen=True, slots=True)
class ReleaseSlots(Command):
    """An attempt of an elastic job is over: the machines of its slots are given back. The job's driver stays."""


@dataclass(frozen=True, slots=True)
class BookActivity(Command):
    """From `at_ns` on, the job's machines are busy with `activity`."""

    activity: Activity
    at_ns: int


@dataclass(frozen=True, slots=True)
class SettleWork(Command):
    """Decide on the training that is still at risk and was done between `from_ns` and `until_ns` (None: until now): it was
    useful, or it is lost."""

    until_ns: int | None
    useful: bool
    from_ns: int = 0


@dataclass(frozen=True, slots=True)
class StartAttempt(Command):
    attempt: int
    delay_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class StopAttempt(Command):
    """Ask the gang to stop: `save` first, or at once. `AttemptEnded` must follow in any case: an attempt that was not
    started yet (its `StartAttempt` has a delay) must not start any more and is reported as ended."""

    attempt: int
    save: bool


@dataclass(frozen=True, slots=True)
class KillAttempt(Command):
    """End the gang whatever it is doing."""

    attempt: int


@dataclass(frozen=True, slots=True)
class SaveCheckpoint(Command):
    attempt: int


@dataclass(frozen=True, slots=True)
class WishSize(Command):
    """Tell the gang how many workers are wished for."""

    attempt: int
    workers: int
