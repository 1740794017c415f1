"""Long polls wait for one job: what happens to others leaves them asleep."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Collection
from typing import Any, cast

from orchestrator.controller.api import Changes


class _Versions:
    """Stands in for a controller: says which jobs are newer, and counts how often it is asked."""

    def __init__(self) -> None:
        self.newer: set[str] = set()
        self.asked = 0
        self.committed: Callable[[Collection[str]], None] = lambda uids: None

    def listen(self, changed: Callable[[Collection[str]], None]) -> None:
        self.committed = changed

    def is_newer(self, uid: str, version: int) -> bool:
        self.asked += 1
        return uid in self.newer

    def commit(self, *uids: str) -> None:
        """From another thread, as the controller does it."""
        self.newer |= set(uids)
        thread = threading.Thread(target=self.committed, args=(set(uids),))
        thread.start()
        thread.join()


def test_only_a_commit_of_the_job_itself_wakes_its_poll() -> None:
    """A hundred commits of other jobs do not even make the poll look; one of its own ends it, and so does closing."""

    async def story() -> None:
        versions = _Versions()
        changes = Changes(cast(Any, versions))
        polls = [asyncio.create_task(changes.wait(uid, 7, 30)) for uid in ("a", "a", "b", "c")]
        await asyncio.sleep(0)
        assert versions.asked == 4
        for _ in range(100):
            versions.commit("x", "y")
        await asyncio.sleep(0)
        assert versions.asked == 4
        versions.commit("a", "x")
        assert await asyncio.gather(*polls[:2]) == [True, True]
        assert versions.asked == 6
        changes.close()
        assert await asyncio.gather(*polls[2:]) == [False, False]
        assert await changes.wait("x", 7, 30)
        assert not await changes.wait("d", 7, 30), "nobody waits for a server that closes"

    asyncio.run(story())


def test_a_commit_after_the_loop_has_ended_is_no_error() -> None:
    """The controller outlives its server by a moment, and commits meanwhile."""
    versions = _Versions()

    async def story() -> Changes:
        return Changes(cast(Any, versions))

    changes = asyncio.run(story())
    versions.commit("a")
    changes.close()
