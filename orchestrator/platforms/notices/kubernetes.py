"""Kubernetes: taints and deletion of nodes, disruption and deletion of pods, by list and watch.

What is read of a node (`get`, `list` and `watch` of nodes, which are cluster-wide), and what it means:

    node.kubernetes.io/out-of-service, node.cloudprovider.kubernetes.io/shutdown     termination, now
    cloud.google.com/impending-node-termination                                      interruption, within 15 s
    aws-node-termination-handler/spot-itn, remediator.aks.microsoft.com/unschedulable   interruption
    aws-node-termination-handler/asg-lifecycle-termination                           termination
    aws-node-termination-handler/scheduled-maintenance                               maintenance
    aws-node-termination-handler/rebalance-recommendation                            rebalance
    ToBeDeletedByClusterAutoscaler, karpenter.sh/disrupted (before 1.0 karpenter.sh/disruption)   drain
    spec.unschedulable (kubectl cordon and drain)                                    drain
    metadata.deletionTimestamp                                                       drain: deletion waits for finalizers
    the node object is gone                                                          termination, now

and of a pod (`get`, `list` and `watch` of pods in its namespace): condition DisruptionTarget, and deletionTimestamp, which
for a pod is when its grace ends: termination. DeletionCandidateOfClusterAutoscaler is no notice: it is often taken back.

Karpenter keeps its forceful deadline on the NodeClaim, which is not read. On GKE 15 s are what a pod on a spot machine gets.

The client speaks to the API server with the token and the certificate that Kubernetes mounts into a pod, read anew for each
request since they are replaced, and needs no library. Job pods hold no token; then the source says so and is off.
"""

from __future__ import annotations

import json
import ssl
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from orchestrator.domain.clock import Clock
from orchestrator.domain.notices import NoticeKind
from orchestrator.platforms.notices.base import NotHere, Sighting, Source, Unreadable, View, instant_ns, seconds
from orchestrator.platforms.notices.nearby import Nearby

Object = Mapping[str, Any]
"""A Kubernetes object as JSON."""
Query = Mapping[str, str]

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
WATCH_SECONDS = 30
"""The server ends a watch after that, which is how a silent one is found out."""
GKE_LEAD_SECONDS = 15.0
GONE_KEPT = 1_000
"""Objects that were deleted and whose notices still stand, at most."""

NOW = 0
TAINTS: Mapping[str, Sighting] = {
    "node.kubernetes.io/out-of-service": Sighting(NoticeKind.TERMINATION, lead_ns=NOW),
    "node.cloudprovider.kubernetes.io/shutdown": Sighting(NoticeKind.TERMINATION, lead_ns=NOW),
    "cloud.google.com/impending-node-termination": Sighting(NoticeKind.INTERRUPTION, lead_ns=seconds(GKE_LEAD_SECONDS)),
    "remediator.aks.microsoft.com/unschedulable": Sighting(NoticeKind.INTERRUPTION),
    "aws-node-termination-handler/spot-itn": Sighting(NoticeKind.INTERRUPTION),
    "aws-node-termination-handler/asg-lifecycle-termination": Sighting(NoticeKind.TERMINATION),
    "aws-node-termination-handler/scheduled-maintenance": Sighting(NoticeKind.MAINTENANCE),
    "aws-node-termination-handler/rebalance-recommendation": Sighting(NoticeKind.REBALANCE),
    "ToBeDeletedByClusterAutoscaler": Sighting(NoticeKind.DRAIN),
    "karpenter.sh/disrupted": Sighting(NoticeKind.DRAIN),
    "karpenter.sh/disruption": Sighting(NoticeKind.DRAIN),
}


class ClusterApi(Protocol):
    """The API server, as far as notices need it."""

    def list(self, path: str, query: Query) -> Object:
        """The list object at `path`. Raises `Unreadable`, and `NotHere` when the server refuses us."""
        ...

    def watch(self, path: str, query: Query) -> Iterator[Object]:
        """Events (`type`, `object`) until the server ends it. Raises as `list` does; may be closed."""
        ...

    def interrupt(self) -> None:
        """From another thread: end what waits, and refuse what comes."""
        ...


def node_view(node: Object, ours: str) -> View:
    """What a Node object says about our node `ours`."""
    metadata, spec = _mapping(node.get("metadata")), _mapping(node.get("spec"))
    view = {}
    for taint in _mappings(spec.get("taints")):
        key = str(taint.get("key"))
        if key in TAINTS:
            view[key] = replace(TAINTS[key], node=ours)
    if spec.get("unschedulable") is True:
        view["unschedulable"] = Sighting(NoticeKind.DRAIN, node=ours)
    if metadata.get("deletionTimestamp"):
        view["deletion"] = Sighting(NoticeKind.DRAIN, node=ours)
    return view


def pod_view(pod: Object, ours: str) -> View:
    """What a Pod object says about our node `ours`."""
    metadata, status = _mapping(pod.get("metadata")), _mapping(pod.get("status"))
    deadline = instant_ns(metadata.get("deletionTimestamp"))
    disrupted = any(
        condition.get("type") == "DisruptionTarget" and condition.get("status") == "True"
        for condition in _mappings(status.get("conditions"))
    )
    if not disrupted and deadline is None:
        return {}
    return {"disruption": Sighting(NoticeKind.TERMINATION, deadline, node=ours)}


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _mappings(value: object) -> list[Mapping[str, Any]]:
    return [_mapping(each) for each in value] if isinstance(value, list) else []


class Watched(Source):
    """The objects at one path. `node_of` gives our node id for an object, None for one that is not of this job; `read` what
    it says; `gone` what it says when it was deleted, None for: as before."""

    every_seconds = 0.0

    def __init__(
        self,
        name: str,
        api: ClusterApi,
        path: str,
        query: Query,
        node_of: Callable[[Object], str | None],
        read: Callable[[Object, str], View],
        gone: Sighting | None = None,
    ) -> None:
        self.name = name
        self._api, self._path, self._query = api, path, dict(query)
        self._node_of, self._read, self._gone = node_of, read, gone
        self._objects: dict[str, tuple[str, View]] = {}
        """By name: our node id, and what the object says."""
        self._deleted: dict[str, View] = {}
        self._version: str | None = None
        self._unshown = False
        """The list came with the probe, and no look has shown it."""
        self._events: Iterator[Object] | None = None

    def probe(self) -> None:
        self._list()
        self._unshown = True

    def look(self) -> View:
        """The list at first; then waits for one event, at most as long as a watch lasts."""
        if self._version is None:
            self._list()
        elif self._unshown:
            self._unshown = False
        elif (event := self._next()) is not None:
            self._take(event)
        views = {**self._deleted, **{name: view for name, (_, view) in self._objects.items()}}
        return {f"{name}/{key}": sighting for name, view in views.items() for key, sighting in view.items()}

    def interrupt(self) -> None:
        self._api.interrupt()

    def _list(self) -> None:
        found = self._api.list(self._path, self._query)
        items = found.get("items")
        version = _mapping(found.get("metadata")).get("resourceVersion")
        if not isinstance(items, list) or not isinstance(version, str):
            raise Unreadable("not a list of Kubernetes objects")
        present = {_name(item): item for item in map(_mapping, items)}
        for name in self._objects.keys() - present.keys():
            self._delete(name)
        for item in present.values():
            self._set(item)
        self._version = version

    def _next(self) -> Object | None:
        if self._events is None:
            more = {"watch": "true", "allowWatchBookmarks": "true", "timeoutSeconds": str(WATCH_SECONDS)}
            query = {**self._query, **more, "resourceVersion": self._version or ""}
            self._events = iter(self._api.watch(self._path, query))
        try:
            return next(self._events)
        except StopIteration:
            self._events = None  # it has lasted its time; the next one goes on from the same version
            return None
        except Unreadable:
            self._events = None
            raise

    def _take(self, event: Object) -> None:
        kind, found = event.get("type"), _mapping(event.get("object"))
        if kind == "ERROR":  # 410, above all: too old to go on from
            self._events = self._version = None
            return
        version = _mapping(found.get("metadata")).get("resourceVersion")
        self._version = version if isinstance(version, str) else self._version
        if kind in ("ADDED", "MODIFIED"):
            self._set(found)
        elif kind == "DELETED":
            self._set(found)
            self._delete(_name(found))

    def _set(self, item: Object) -> None:
        name, ours = _name(item), self._node_of(item)
        if ours is not None:
            self._deleted.pop(name, None)
            self._objects[name] = (ours, self._read(item, ours))

    def _delete(self, name: str) -> None:
        """What was said of an object that is gone has come true, so it goes on to stand."""
        if name not in self._objects:
            return
        ours, view = self._objects.pop(name)
        if self._gone is not None:
            view = {"gone": replace(self._gone, node=ours)}
        self._deleted[name] = view
        while len(self._deleted) > GONE_KEPT:
            self._deleted.pop(next(iter(self._deleted)))


def _name(item: Object) -> str:
    metadata = _mapping(item.get("metadata"))
    return f"{metadata.get('namespace', '')}/{metadata.get('name')}"


class ApiServer:
    """The API server over HTTP: one stream or request at a time. `token` is asked for each."""

    def __init__(self, server: Nearby, token: Callable[[], str]) -> None:
        self._server, self._token = server, token

    def list(self, path: str, query: Query) -> Object:
        answer = self._server.get(_url(path, query), self._headers())
        if answer.status in (401, 403):
            raise NotHere(f"the API server refuses to list {path} (HTTP status {answer.status})")
        if answer.status != 200:
            raise Unreadable(f"HTTP status {answer.status} for {path}")
        return _mapping(answer.document())

    def watch(self, path: str, query: Query) -> Iterator[Object]:
        for line in self._server.lines(_url(path, query), self._headers(), idle_seconds=WATCH_SECONDS + 5):
            try:
                event = json.loads(line)
            except (ValueError, RecursionError):
                raise Unreadable(f"a watch that is not JSON: {line[:60]!r}") from None
            yield _mapping(event)

    def interrupt(self) -> None:
        self._server.interrupt()

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._token()}", "Accept": "application/json"}


def in_cluster(environ: Mapping[str, str], clock: Clock, account: Path = SERVICE_ACCOUNT) -> ApiServer:
    """The API server as a pod reaches it: address from the environment, token and certificate from files. Raises `NotHere`
    outside a pod, and in a pod that holds no token."""
    host, port = environ.get("KUBERNETES_SERVICE_HOST"), environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not host or not port.isdecimal():
        raise NotHere("not in a Kubernetes pod (KUBERNETES_SERVICE_HOST is not set)")

    def token() -> str:
        try:
            return (account / "token").read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            raise NotHere(f"no API token in this pod ({account / 'token'})") from None

    token()
    try:
        tls = ssl.create_default_context(cafile=str(account / "ca.crt"))
    except OSError as error:
        raise NotHere(f"no certificate of the cluster: {error}") from None
    server = Nearby((host, int(port)), clock, connect_seconds=2.0, answer_seconds=10.0, tls=tls)
    return ApiServer(server, token)


def _url(path: str, query: Query) -> str:
    return f"{path}?{urllib.parse.urlencode(query)}" if query else path


def kubernetes(
    environ: Mapping[str, str], clock: Clock, node: str, connect: Callable[[], ClusterApi] | None = None
) -> list[Source]:
    """This pod and the node under it, by the names in NODE_NAME, POD_NAME and POD_NAMESPACE (downward API); what has no name
    is not watched. `connect` gives an API client for each source; raises `NotHere` as it does."""
    connect = connect or (lambda: in_cluster(environ, clock))
    node_name, pod, namespace = (environ.get(name) for name in ("NODE_NAME", "POD_NAME", "POD_NAMESPACE"))
    sources: list[Source] = []
    if node_name:
        query = {"fieldSelector": f"metadata.name={node_name}"}
        gone = Sighting(NoticeKind.TERMINATION, lead_ns=NOW)
        sources.append(Watched("kubernetes", connect(), "/api/v1/nodes", query, lambda _: node, node_view, gone))
    if pod and namespace:
        query, path = {"fieldSelector": f"metadata.name={pod}"}, f"/api/v1/namespaces/{namespace}/pods"
        sources.append(Watched("kubernetes-pod", connect(), path, query, lambda _: node, pod_view))
    if not sources:
        raise NotHere("neither NODE_NAME nor POD_NAME and POD_NAMESPACE are set (downward API)")
    return sources


def all_nodes(api: ClusterApi, node_of: Callable[[Object], str | None], selector: str = "") -> Source:
    """Every node of a cluster, or those with the labels `selector`: for a controller, which has a token."""
    gone = Sighting(NoticeKind.TERMINATION, lead_ns=NOW)
    query = {"labelSelector": selector} if selector else {}
    return Watched("kubernetes", api, "/api/v1/nodes", query, node_of, node_view, gone)


def all_pods(api: ClusterApi, namespace: str, node_of: Callable[[Object], str | None], selector: str) -> Source:
    """The pods of a job, by their labels: for a controller."""
    path = f"/api/v1/namespaces/{namespace}/pods"
    return Watched("kubernetes-pod", api, path, {"labelSelector": selector}, node_of, pod_view)
