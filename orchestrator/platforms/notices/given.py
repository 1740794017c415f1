"""Notices that somebody hands us: a callable, and Ray's draining nodes.

Ray tells the nodes that are being drained with a deadline (`ray drain-node`, its autoscaler, KubeRay); by way of a private
function, since no public one tells of other nodes, and named only here. Ray is imported when the source is first asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from orchestrator.domain.notices import NoticeKind
from orchestrator.platforms.notices.base import NotHere, Sighting, Source, Unreadable, View

Draining = Callable[[], Mapping[str, int]]
"""Ray's hex ids of draining nodes, with the deadline in ms since the Unix epoch; 0 for none. May raise `Unreadable`."""


class Asked(Source):
    """A view from a callable, which may raise `Unreadable`, and `NotHere` when it is probed."""

    def __init__(self, name: str, ask: Callable[[], View], every_seconds: float = 1.0) -> None:
        self.name, self.every_seconds = name, every_seconds
        self._ask = ask

    def look(self) -> View:
        return self._ask()


class Absent(Source):
    """A source of which it is known beforehand that it is not here, and why: the watcher tells it like any other's absence."""

    def __init__(self, name: str, why: str) -> None:
        self.name = name
        self._why = why

    def probe(self) -> None:
        raise NotHere(self._why)

    def look(self) -> View:
        return {}


class RayDrain(Source):
    """Draining nodes. `node_of` gives our node id for Ray's, None for a node that is not of this job."""

    name = "ray"

    def __init__(
        self,
        node_of: Callable[[str], str | None],
        draining: Draining | None = None,
        every_seconds: float = 1.0,
    ) -> None:
        self.every_seconds = every_seconds
        self._node_of, self._draining = node_of, draining

    def probe(self) -> None:
        if self._draining is None:
            self._draining = ray_draining()

    def look(self) -> View:
        assert self._draining is not None, "probe comes first"
        try:
            draining = self._draining()
        except (
            RuntimeError,
            OSError,
            ValueError,
        ) as error:  # RpcError, ConnectionError and "not connected" are among these
            raise Unreadable(f"Ray does not tell its draining nodes: {error}") from None
        view = {}
        for ray_id, deadline_ms in draining.items():
            node = self._node_of(ray_id)
            if node is not None:
                deadline = deadline_ms * 1_000_000 if deadline_ms > 0 else None
                view[ray_id] = Sighting(NoticeKind.DRAIN, deadline, node=node)
        return view


def ray_draining() -> Draining:
    """The callable that asks Ray. Raises `NotHere` without Ray, or in a process that is not connected to a cluster."""
    try:
        import ray
        from ray._private import state
        from ray.exceptions import RayError
    except ImportError as error:
        raise NotHere(f"no Ray in this environment ({error})") from None
    if not ray.is_initialized():
        raise NotHere("this process is not connected to a Ray cluster")

    def draining() -> Mapping[str, int]:
        try:
            nodes: Mapping[str, int] = state.state.get_draining_nodes()
        except (RayError, RuntimeError, OSError) as error:
            raise Unreadable(f"Ray does not tell its draining nodes: {error}") from None
        return nodes

    return draining
