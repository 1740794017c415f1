"""Saving beside training: two phases over all ranks, no collective of its own while a write is under way.

1. At a step that all ranks agreed on, each copies its state (its part's `content` is ready to be read) and goes on
   training; a thread of each rank writes the part and hashes it on the way.
2. Every rank puts "written" or "failed" into the all-reduce that each step makes anyway (`flags`, `agreed`). When all have
   written, the ranks exchange the hashes, and a thread of rank 0 commits. Only then is the checkpoint told to anybody.

So the step path pays for the copy alone, a failure on one rank is raised by all at the same step, and at most one save is
under way: the next one first waits for it (back-pressure), so that memory is bounded by one copy of the state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from orchestrator import storage
from orchestrator.domain.clock import Clock, seconds_between
from orchestrator.domain.errors import StorageError
from orchestrator.spec.models import Checkpoint
from orchestrator.storage import is_full
from orchestrator.training.agreement import Peers
from orchestrator.training.errors import Reason, WorkerFailed
from orchestrator.training.reporting import Reporter

T = TypeVar("T")
Content = Iterable[memoryview | bytes]
Entries = dict[str, storage.FileEntry]


@dataclass(frozen=True, slots=True)
class Part:
    """One file of one rank."""

    path: str
    """Name in the checkpoint; of a shared part, the name that its fragments carry until its digest is known."""
    content: Callable[[], Content]
    """Called once, in the writing thread."""
    shared: bool = False
    """Written once for all checkpoints of the store, and named by its content."""
    large: bool = False
    """Hashed by blocks, so that slices of it can be read and verified alone."""


@dataclass(frozen=True, slots=True)
class Saved:
    """A committed checkpoint and what it cost. `seconds`: from the step's end until it was durable."""

    listed: storage.Listed
    seconds: float
    stall_seconds: float


def teller(reporter: Reporter, *, covers_ns: int, wish: int, best: bool) -> Callable[[Saved], None]:
    """What tells the controller of a checkpoint once it is durable."""

    def tell(saved: Saved) -> None:
        manifest = saved.listed.manifest
        assert manifest is not None
        reporter.first(
            "checkpoint",
            step=manifest.global_step,
            uri=saved.listed.uri,
            bytes=manifest.total_bytes,
            seconds=saved.seconds,
            stall_seconds=saved.stall_seconds,
            covers_ns=covers_ns,
            wish=wish,
            best=best,
        )

    return tell


@dataclass
class _Pending:
    """A save between its submission and the moment when all ranks know that everybody has written."""

    draft: storage.Draft
    facts: storage.Manifest
    written: Future[Entries]
    began_ns: int
    stall_ns: int
    acknowledge: Callable[[Saved], None]


def as_worker_failure(error: StorageError, cause: BaseException | None) -> WorkerFailed:
    """A storage error with the reason that the controller tells apart: full, or failed otherwise."""
    full = isinstance(cause, OSError) and is_full(cause)
    return WorkerFailed(Reason.STORAGE_FULL if full else Reason.STORAGE_FAILED, error.what, error.hint)


def retention(checkpoint: Checkpoint) -> storage.Retention:
    """What the job wants kept."""
    return storage.Retention(checkpoint.keep, best=checkpoint.keep_best, every_ns=checkpoint.keep_every_ns)


def stored(work: Callable[[], T]) -> T:
    """Run a storage operation; its StorageError leaves as WorkerFailed."""
    try:
        return work()
    except StorageError as error:
        raise as_worker_failure(error, error.__cause__) from error


def all_refused(uri: str, refused: Sequence[storage.Listed]) -> WorkerFailed:
    """There are checkpoints and none is whole: beginning anew would redo all of it unasked."""
    newest = refused[0]
    return WorkerFailed(
        Reason.STORAGE_FAILED,
        f"none of the {len(refused)} checkpoints in {uri} is whole; the newest, of step {newest.step}: {newest.why}",
        "bring one back from a copy, or delete them to begin anew",
    )


class Saver:
    """Writes one attempt's checkpoints. Every method is called by all ranks at the same step, from the training thread."""

    def __init__(
        self,
        peers: Peers,
        store: storage.Store,
        clock: Clock,
        *,
        attempt: int,
        retention: storage.Retention,
        verify: bool,
        generation: int = 0,
    ) -> None:
        """`generation`: how often the launcher began this attempt anew; what an earlier one left unfinished is let be."""
        self._peers = peers
        self._store = store
        self._clock = clock
        self._attempt = attempt
        self._generation = generation
        self._retention = retention
        self._verify = verify
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: _Pending | None = None
        self._commit: Future[None] | None = None
        """Rank 0's newest commit, until it is known to have succeeded."""
        self._shared: Entries = {}
        self._last_step: int | None = None
        self._newest: str | None = None
        self._abandoned = False
        self.durable_step = 0
        """The newest step that this generation's rank 0 has committed; 0 on other ranks, and before the first."""

    def flags(self) -> tuple[float, float]:
        """(this rank has written what it should, something of it failed), each 0.0 or 1.0: to be summed over the ranks."""
        written = failed = False
        if self._pending is not None and self._pending.written.done():
            failed = self._pending.written.exception() is not None
            written = not failed
        if self._commit is not None and self._commit.done():
            failed = failed or self._commit.exception() is not None
        return float(written), float(failed)

    def agreed(self, written: float, failed: float) -> None:
        """What the sums of all ranks' flags say: go on, let rank 0 commit, or raise WorkerFailed together."""
        if failed:
            self._peers.settle(self._raise_own)
        if self._pending is not None and written == self._peers.world_size:
            self._hand_over(self._pending)

    def save(
        self,
        step: int,
        prepare: Callable[[], tuple[Sequence[Part], storage.Manifest]],
        acknowledge: Callable[[Saved], None],
    ) -> bool:
        """Begin to save `step`: wait for the save before it, let `prepare` copy the state, and return.

        `prepare` gives this rank's parts and, on rank 0, the facts of the manifest (`files` is filled in). `acknowledge`
        is called on rank 0, in its writing thread, when the checkpoint is durable. A step that was saved already in this
        attempt is left alone (False).
        """
        if step == self._last_step:
            return False
        began = self._clock.monotonic_ns()
        if self._pending is not None:
            self._wait_for_all(self._pending)
        parts, facts = prepare()
        draft = self._store.draft(step, self._attempt, self._generation)
        written = self._thread.submit(self._write, draft, parts)
        stalled = self._clock.monotonic_ns() - began
        self._pending = _Pending(draft, facts, written, began, stalled, acknowledge)
        self._last_step = step
        return True

    def finish(self) -> str | None:
        """Wait until everything that was begun is durable: where this attempt's newest checkpoint is, on every rank.

        Raises WorkerFailed on every rank when something cannot be.
        """
        if self._pending is not None:
            self._wait_for_all(self._pending)

        def committed() -> str | None:
            if self._commit is not None:
                _result(self._commit)
            return self._newest

        return self._peers.first(committed)

    def leave(self, within_seconds: float) -> None:
        """Make durable what can be in so much time, and wait for nothing else. Nothing may be saved after it.

        What is not ready by then was never told to anybody; its draft is cleared away by a later attempt.
        """
        self._abandoned = True
        if self._pending is not None:
            written = self._pending.written
            wait([written], within_seconds)
            if all(self._peers.gather(written.done() and written.exception() is None)):
                self._hand_over(self._pending)
        if self._commit is not None:
            wait([self._commit], within_seconds)

    def tidy(self) -> None:
        """Clear away, beside training, what earlier attempts and generations left unfinished. Only rank 0 does."""
        if self._peers.rank == 0:
            self._thread.submit(self._clean)

    def close(self) -> None:
        """Let the thread go. What is under way is written to its end, unless `leave` was called, but other ranks do not
        wait for it."""
        self._thread.shutdown(wait=not self._abandoned, cancel_futures=self._abandoned)

    def _wait_for_all(self, pending: _Pending) -> None:
        start = self._clock.monotonic_ns()
        wait([pending.written])
        self._peers.settle(self._raise_own)
        pending.stall_ns += self._clock.monotonic_ns() - start
        self._hand_over(pending)

    def _raise_own(self) -> None:
        for future in (self._pending.written if self._pending is not None else None, self._commit):
            if future is not None and future.done():
                _result(future)

    def _hand_over(self, pending: _Pending) -> None:
        """All have written: exchange the hashes; rank 0 commits in its thread."""
        start = self._clock.monotonic_ns()
        entries = {path: entry for part in self._peers.gather(pending.written.result()) for path, entry in part.items()}
        self._pending = None
        if self._peers.rank == 0:
            pending.stall_ns += self._clock.monotonic_ns() - start
            self._commit = self._thread.submit(self._commit_and_prune, pending, entries)

    # ---- in the thread

    def _write(self, draft: storage.Draft, parts: Sequence[Part]) -> Entries:
        entries: Entries = {}
        for part in parts:
            if part.shared and part.path in self._shared:
                entries[part.path] = self._shared[part.path]
            elif part.shared:
                entry = replace(draft.write_shared(part.content()), name=part.path)
                entries[part.path] = self._shared[part.path] = entry
            else:
                entries[part.path] = draft.write(part.path, part.content(), large=part.large)
        return entries

    def _commit_and_prune(self, pending: _Pending, entries: Mapping[str, storage.FileEntry]) -> None:
        files = {path: entry.path for path, entry in entries.items()}
        fragments = tuple(replace(fragment, file=files[fragment.file]) for fragment in pending.facts.fragments)
        facts = replace(pending.facts, fragments=fragments, created_ns=self._clock.now_ns())
        listed = pending.draft.commit(facts, entries.values(), read_back=self._verify)
        seconds = seconds_between(pending.began_ns, self._clock.monotonic_ns())
        self._newest, self.durable_step = listed.uri, listed.step
        pending.acknowledge(Saved(listed, seconds, seconds_between(0, pending.stall_ns)))
        try:
            self._store.prune(self._retention, verified=[listed.uri])
        except StorageError:
            return  # deleting old checkpoints is tried again after the next save

    def _clean(self) -> None:
        with suppress(StorageError):  # tried again by whoever begins next
            self._store.clean_leftovers(self._attempt, self._generation)


def _result(future: Future[Any]) -> None:
    """Raise what went wrong in a thread."""
    stored(future.result)
