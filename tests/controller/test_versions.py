"""Versions tell a caller whether a job changed since it was read."""

from __future__ import annotations

from tests.controller.world import World


def test_a_job_is_newer_only_by_its_own_commits(world: World) -> None:
    """Versions grow with each commit, a job's own with those about it, and none of another controller's life is known."""
    first = world.submit("a", suspend=True)
    version, commits = world.controller.version, world.controller.commits
    second = world.submit("b", suspend=True)
    assert not world.controller.is_newer(first.uid, version)
    assert world.controller.is_newer(second.uid, version)
    assert world.controller.commits == commits + 1
    world.controller.request("default", "a", "cancel")
    assert world.controller.is_newer(first.uid, version)
    newest = world.controller.version
    assert not world.controller.is_newer(first.uid, newest)
    world.restart()
    assert world.controller.version > newest
    assert world.controller.is_newer(first.uid, newest)
    assert world.controller.is_newer(first.uid, 10_000)
    assert not world.controller.is_newer(first.uid, world.controller.version)
