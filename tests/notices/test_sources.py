"""What is particular to each source, against its fake server."""

from __future__ import annotations

import datetime
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.domain.clock import ManualClock
from orchestrator.domain.notices import NoticeKind
from orchestrator.platforms import notices
from orchestrator.platforms.notices import FakeSource, choose, for_agent
from orchestrator.platforms.notices.aws import aws
from orchestrator.platforms.notices.azure import ScheduledEvents
from orchestrator.platforms.notices.base import NotHere, Sighting, Source, Unreadable, seconds
from orchestrator.platforms.notices.gcp import gcp
from orchestrator.platforms.notices.given import Asked, ray_draining
from orchestrator.platforms.notices.kubernetes import ApiServer, all_nodes, all_pods, in_cluster, kubernetes
from orchestrator.platforms.notices.nearby import Nearby
from orchestrator.platforms.notices.watcher import Watcher
from tests.notices.rigs import ANSWER, CLOCK, NODE, NODES, PODS, QUICK, Recorder
from tests.notices.servers import Azure, Ec2, Gce, Kubernetes, azure_event

pytestmark = [pytest.mark.integration, pytest.mark.timeout(60)]

ACTION = "spot/instance-action"
TERMINATE = {"action": "terminate", "time": "2039-09-18T08:22:00Z"}
TAINTED = {"taints": [{"key": "karpenter.sh/disrupted", "effect": "NoSchedule"}]}


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


# --- AWS ---
@pytest.fixture
def ec2() -> Iterator[Ec2]:
    with Ec2() as server:
        yield server


def test_one_token_serves_until_a_tenth_of_its_life_is_left(ec2: Ec2) -> None:
    """A token is asked for once and used for every look, then renewed before it ends, without a look that fails."""
    clock = ManualClock()
    source = aws(clock, ec2.address)[0]
    source.probe()
    for _ in range(5):
        assert source.look() == {}
    assert ec2.requests["PUT /latest/api/token"] == 1
    clock.advance(21_600 * 0.9 + 1)
    ec2.put(ACTION, TERMINATE)
    assert list(source.look()) == ["instance-action"]
    assert ec2.requests["PUT /latest/api/token"] == 2
    assert ec2.requests[f"GET /latest/meta-data/{ACTION}"] == 6


def test_a_refused_token_is_renewed_within_the_look(ec2: Ec2) -> None:
    """A 401 costs one more token and no notice; a second 401 in a row is trouble, not an endless loop."""
    source = aws(CLOCK, ec2.address)[0]
    source.probe()
    ec2.put(ACTION, TERMINATE)
    ec2.expire_tokens()
    assert list(source.look()) == ["instance-action"]
    assert ec2.requests["PUT /latest/api/token"] == 2
    ec2.refuses = True
    with pytest.raises(Unreadable, match="HTTP status 401"):
        source.look()
    assert ec2.requests["PUT /latest/api/token"] == 3
    ec2.refuses = False
    ec2.expire_tokens()
    ec2.break_with("500", "token")
    with pytest.raises(Unreadable, match="HTTP status 500 for a token"):
        source.look()


def test_a_path_that_fails_hides_no_other(ec2: Ec2, recorder: Recorder) -> None:
    """An interruption is told while the path of rebalance recommendations is out of order."""
    ec2.break_with("500", "rebalance")
    watcher = Watcher(aws(CLOCK, ec2.address, every_seconds=QUICK), recorder, CLOCK, NODE)
    ec2.wait_for_requests(ACTION)
    ec2.put(ACTION, TERMINATE)
    recorder.wait(1)
    watcher.stop()


def test_a_wrong_clock_is_told_once_and_corrected(ec2: Ec2, caplog: pytest.LogCaptureFixture) -> None:
    """When EC2's clock is an hour ahead, a notice of two minutes is one of two minutes here."""
    ec2.ahead_seconds = 3_600.0
    theirs = datetime.datetime.fromtimestamp(CLOCK.now_ns() / 1e9 + 3_600 + 120, datetime.UTC)
    ec2.put(ACTION, {"action": "terminate", "time": theirs.strftime("%Y-%m-%dT%H:%M:%SZ")})
    source = aws(CLOCK, ec2.address)[0]
    deadlines = [source.look()["instance-action"].deadline_ns for _ in range(3)]
    for deadline in deadlines:
        assert deadline is not None
        assert 115 < (deadline - CLOCK.now_ns()) / 1e9 <= 120
    assert [record.message.partition("is ")[2] for record in caplog.records] in (
        ["+3600 s from ours; deadlines are corrected"],
        ["+3599 s from ours; deadlines are corrected"],
    )


def test_metadata_that_is_switched_off_is_not_ec2(ec2: Ec2) -> None:
    """A server that refuses the token, as EC2 does when its endpoint is disabled, is no source."""
    answers = iter([403, 404, 405])
    ec2.answer = lambda *_: _reply(next(answers))  # type: ignore[method-assign]
    for status in (403, 404, 405):
        with pytest.raises(NotHere, match=f"HTTP status {status}"):
            aws(CLOCK, ec2.address)[0].probe()


def _reply(status: int) -> Any:
    from tests.notices.servers import Reply

    return Reply(status)


# --- GCP ---
@pytest.fixture
def gce() -> Iterator[Gce]:
    with Gce() as server:
        yield server


def test_a_preemption_arrives_without_being_asked_for(gce: Gce, recorder: Recorder) -> None:
    """With the long poll a preemption is told at once, though nobody asked in the meantime."""
    watcher = Watcher(gcp(CLOCK, gce.address), recorder, CLOCK, NODE)
    gce.wait_for_requests("preempted", 3)  # the probe, the value, and the question that waits
    quiet = gce.requests["GET /computeMetadata/v1/instance/preempted"]
    begun = CLOCK.now_ns()
    gce.put("preempted", "TRUE")
    (change,) = recorder.wait(1)
    assert (change.notice.received_ns - begun) / 1e9 < 1.0
    assert change.notice.deadline_ns == change.notice.received_ns + seconds(30)
    assert gce.requests["GET /computeMetadata/v1/instance/preempted"] <= quiet + 2
    watcher.stop()


def test_a_preemption_between_two_questions_is_not_missed(gce: Gce) -> None:
    """What changed while nobody was asking is answered at once, because the last ETag is sent along."""
    source = gcp(CLOCK, gce.address)[0]
    assert source.look() == {}
    gce.put("preempted", "TRUE")
    assert list(source.look()) == ["TRUE"]


def test_a_server_that_does_not_wait_is_asked_at_a_pace(gce: Gce, recorder: Recorder) -> None:
    """A stand-in that answers every long poll at once is asked once a `every_seconds`, not as fast as it can answer."""
    gce.waits = False
    watcher = Watcher(gcp(CLOCK, gce.address, every_seconds=0.2)[:1], recorder, CLOCK, NODE)
    gce.wait_for_requests("preempted", 3)
    begun = time.monotonic()
    gce.wait_for_requests("preempted", 6)
    assert time.monotonic() - begun > 0.3
    watcher.stop()


def test_a_live_migration_is_no_notice(gce: Gce) -> None:
    """A machine that is moved with its memory loses nothing; one that must be restarted does."""
    source = gcp(CLOCK, gce.address)[1]
    gce.put("maintenance-event", "MIGRATE_ON_HOST_MAINTENANCE")
    assert source.look() == {}
    gce.put("maintenance-event", "TERMINATE_ON_HOST_MAINTENANCE")
    assert [sighting.kind for sighting in source.look().values()] == [NoticeKind.MAINTENANCE]


# --- Azure ---
@pytest.fixture
def azure() -> Iterator[Azure]:
    with Azure() as server:
        yield server


def events(server: Azure, **more: Any) -> ScheduledEvents:
    source = ScheduledEvents(CLOCK, server.address, answer_seconds=ANSWER, **more)
    source.probe()
    return source


def test_events_of_other_machines_and_pauses_are_left_out(azure: Azure) -> None:
    """Events are told to the whole scale set: only those that name this machine count, and a freeze never does."""
    source = events(azure)
    azure.put(
        azure_event("other", Resources=["pool_1"]),
        azure_event("freeze", "Freeze", DurationInSeconds=5),
        azure_event("none", Resources=[]),
        {"EventId": "odd"},
        azure_event("mine", "Redeploy", 600.0, Resources=["pool_1", "Pool_0"]),
    )
    view = source.look()
    assert {key: sighting.kind for key, sighting in view.items()} == {"mine": NoticeKind.MAINTENANCE}


def test_an_event_that_has_started_is_due_now(azure: Azure) -> None:
    """Azure empties NotBefore when an event starts; a hardware failure starts without having been scheduled."""
    source = events(azure)
    azure.put(azure_event("failed", "Reboot", EventStatus="Started", NotBefore=""))
    assert source.look() == {"failed": Sighting(NoticeKind.MAINTENANCE, lead_ns=0)}


def test_an_event_is_approved_when_the_node_is_empty_and_nobody_else_is_concerned(azure: Azure) -> None:
    """Nothing is approved before the node was handled; then each event that names this machine alone, once."""
    source = events(azure, acknowledge=True)
    azure.put(azure_event("alone"), azure_event("shared", "Reboot", Resources=["pool_0", "pool_1"]))
    source.look()
    source.look()
    assert azure.started == []
    source.handled(NODE)
    source.look()
    source.look()
    assert azure.started == ["alone"]
    azure.put()
    source.look()
    azure.put(azure_event("later"))
    source.look()
    source.look()
    assert azure.started == ["alone"]


def test_nothing_is_approved_unless_it_was_asked_for(azure: Azure) -> None:
    """Without `acknowledge` an event runs its course."""
    source = events(azure)
    azure.put(azure_event("alone"))
    source.look()
    source.handled(NODE)
    source.look()
    source.look()
    assert azure.started == []


def test_the_first_answer_may_take_long_and_a_stop_does_not_wait_for_it(azure: Azure, recorder: Recorder) -> None:
    """The first question of all is waited for beyond the usual time; stopping ends the wait at once."""
    azure.first_answer_seconds = 4 * ANSWER
    azure.put(azure_event("one"))
    assert list(events(azure).look()) == ["one"]
    azure.first_answer_seconds = 60.0
    watcher = Watcher([ScheduledEvents(CLOCK, azure.address)], recorder, CLOCK, NODE)
    azure.wait_for_requests("scheduledevents", 2)
    begun = time.monotonic()
    watcher.stop()
    assert time.monotonic() - begun < 1.0
    recorder.wait(0)


# --- Kubernetes ---
@pytest.fixture
def cluster() -> Iterator[Kubernetes]:
    with Kubernetes() as server:
        yield server


def api(server: Kubernetes) -> ApiServer:
    return ApiServer(Nearby(server.address, CLOCK, answer_seconds=ANSWER), lambda: server.token)


def name_of(item: Any) -> str | None:
    """Our node id is the name; objects called foreign are not ours."""
    name: str = item["metadata"]["name"]
    return None if name.startswith("foreign") else name


def test_all_nodes_of_a_cluster_are_watched_over_one_connection(cluster: Kubernetes, recorder: Recorder) -> None:
    """A controller's source tells each node's notices under our id for it, and never those of foreign nodes."""
    for name in ("a", "b", "foreign"):
        cluster.put(NODES, name, spec={})
    watcher = Watcher([all_nodes(api(cluster), name_of)], recorder, CLOCK, NODE)
    cluster.wait_for_requests(NODES)
    for name in ("foreign", "b", "a"):
        cluster.put(NODES, name, spec=TAINTED)
    changes = recorder.wait(2)
    assert [(change.notice.node, change.notice.kind) for change in changes] == [
        ("b", NoticeKind.DRAIN),
        ("a", NoticeKind.DRAIN),
    ]
    watcher.stop()


def test_a_watch_that_is_too_old_lists_again(cluster: Kubernetes, recorder: Recorder) -> None:
    """After 410 Gone the list is read again: what appeared, and what was deleted, in the gap is told."""
    cluster.put(NODES, "a", spec={})
    cluster.put(NODES, "b", spec={})
    watcher = Watcher([all_nodes(api(cluster), name_of)], recorder, CLOCK, NODE, retry_seconds=QUICK)
    cluster.wait_for_requests(NODES, 1)
    with cluster.changed:
        cluster.put(NODES, "a", spec=TAINTED)
        cluster.delete(NODES, "b")
        cluster.forget_history()
    kinds = {change.notice.node: change.notice.kind for change in recorder.wait(2)}
    assert kinds == {"a": NoticeKind.DRAIN, "b": NoticeKind.TERMINATION}
    watcher.stop()


def test_a_deleted_node_is_terminated_and_a_new_one_of_its_name_is_well(
    cluster: Kubernetes, recorder: Recorder
) -> None:
    """The deletion of a node is told as its end, now; a node that joins under the same name takes that back."""
    cluster.put(NODES, "a", spec=TAINTED)
    watcher = Watcher([all_nodes(api(cluster), name_of)], recorder, CLOCK, NODE)
    recorder.wait(1)
    cluster.delete(NODES, "a")
    deletion = recorder.wait(2)[1]
    assert deletion.notice.kind is NoticeKind.TERMINATION
    assert deletion.notice.deadline_ns == deletion.notice.received_ns
    cluster.put(NODES, "a", spec={})
    assert recorder.wait(3)[2].withdrawn
    watcher.stop()


def test_a_pod_that_is_gone_was_not_spared(cluster: Kubernetes, recorder: Recorder) -> None:
    """When a disrupted pod disappears its notice has come true, and is not told as withdrawn."""
    cluster.put(PODS, "w-0", metadata={"deletionTimestamp": "2039-09-18T08:22:00Z"})
    watcher = Watcher([all_pods(api(cluster), "jobs", name_of, "")], recorder, CLOCK, NODE)
    recorder.wait(1)
    cluster.delete(PODS, "w-0")
    cluster.put(PODS, "w-1", metadata={"deletionTimestamp": "2039-09-18T08:22:00Z"})
    assert [change.notice.node for change in recorder.wait(2)] == ["w-0", "w-1"]
    assert len(watcher.told()) == 2
    watcher.stop()


def test_what_the_token_does_not_allow_is_told_and_given_up(cluster: Kubernetes) -> None:
    """A refused list is an absent source with the path in the reason."""
    cluster.token = "another"
    source = all_nodes(ApiServer(Nearby(cluster.address, CLOCK), lambda: "ours"), name_of)
    with pytest.raises(NotHere, match=r"refuses to list /api/v1/nodes \(HTTP status 401\)"):
        source.probe()
    cluster.token = "ours"
    with pytest.raises(NotHere, match="refuses to list /api/v1/namespaces/other/pods"):
        all_pods(ApiServer(Nearby(cluster.address, CLOCK), lambda: "ours"), "other", name_of, "").probe()


def certificate(folder: Path) -> ssl.SSLContext:
    """A certificate for 127.0.0.1 in `folder`/ca.crt, and the server's side of it."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "kubernetes")])
    begin = datetime.datetime.fromtimestamp(CLOCK.now_ns() / 1e9 - 3600, datetime.UTC)
    built = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + datetime.timedelta(days=2))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "ca.crt").write_bytes(built.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(private)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "ca.crt", folder / "key.pem")
    return context


def test_a_pod_speaks_to_the_api_server_with_what_is_mounted(tmp_path: Path, recorder: Recorder) -> None:
    """Over TLS with the mounted certificate and token: this pod's node is watched, a token that is replaced is used, and
    stopping ends an open watch at once."""
    with Kubernetes(certificate(tmp_path)) as server:
        (tmp_path / "token").write_text(server.token, encoding="ascii")
        host, port = server.address
        environ = {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": str(port), "NODE_NAME": "a"}
        server.put(NODES, "a", spec={})
        server.put(NODES, "b", spec=TAINTED)
        sources = kubernetes(environ, CLOCK, NODE, lambda: in_cluster(environ, CLOCK, tmp_path))
        watcher = Watcher(sources, recorder, CLOCK, NODE, retry_seconds=QUICK)
        server.wait_for_requests(NODES, 1)
        server.token = "rotated"
        (tmp_path / "token").write_text("rotated", encoding="ascii")
        server.forget_history()
        server.put(NODES, "a", spec=TAINTED)
        (change,) = recorder.wait(1)
        assert (change.notice.node, change.notice.kind) == (NODE, NoticeKind.DRAIN)
        begun = time.monotonic()
        watcher.stop()
        assert time.monotonic() - begun < 1.0


# --- Ray, callables, the watcher ---
def test_ray_is_absent_where_nobody_is_connected_to_it() -> None:
    """In a process without a Ray cluster the source says so."""
    with pytest.raises(NotHere, match=r"not connected to a Ray cluster|no Ray in this environment"):
        ray_draining()


def test_a_source_with_a_defect_is_told_and_asked_again(recorder: Recorder, caplog: pytest.LogCaptureFixture) -> None:
    """An error that no source should raise does not silence it for good."""
    answers: Iterator[Any] = iter([ZeroDivisionError("oops"), {"a": Sighting(NoticeKind.DRAIN)}])

    def ask() -> dict[str, Sighting]:
        answer = next(answers, {"a": Sighting(NoticeKind.DRAIN)})
        if isinstance(answer, Exception):
            raise answer
        return dict(answer)

    watcher = Watcher([Asked("mine", ask, QUICK)], recorder, CLOCK, NODE, retry_seconds=QUICK)
    recorder.wait(1)
    watcher.stop()
    assert "a defect in the source of notices mine" in caplog.text


def test_a_named_source_is_looked_for_again(recorder: Recorder) -> None:
    """A persistent watcher asks an absent source again until it is there; otherwise it is given up."""

    class Late(FakeSource):
        probes = 0

        def probe(self) -> None:
            self.probes += 1
            if self.probes < 3:
                raise NotHere("not yet")

    late, given_up = Late("late"), Late("late")
    for source in (late, given_up):
        source.show("a", Sighting(NoticeKind.DRAIN))
    patient = Watcher([late], recorder, CLOCK, NODE, persistent=[late], absent_seconds=QUICK)
    recorder.wait(1)
    impatient = Watcher([given_up], recorder, CLOCK, NODE, absent_seconds=QUICK)
    for thread in impatient._threads:
        thread.join(5)
    assert given_up.probes == 1
    recorder.wait(1)
    patient.stop()
    impatient.stop()


def test_an_agent_is_told_documents(tmp_path: Path) -> None:
    """What an agent takes: a function that begins to watch, is given documents, and returns the watcher."""
    path = tmp_path / "notices.json"
    path.write_text('{"kind": "drain"}', encoding="utf-8")
    told: list[Any] = []
    more = threading.Condition()

    def tell(document: Any) -> None:
        with more:
            told.append(document)
            more.notify_all()

    watcher = for_agent(f"file:{path}", NODE, {}, CLOCK)(tell)
    with more:
        assert more.wait_for(lambda: len(told) == 1, 10)
    path.unlink()
    with more:
        assert more.wait_for(lambda: len(told) == 2, 10)
    watcher.stop()
    first = told[0]
    assert first == {"source": "file", "node": NODE, "kind": "drain", "deadline_ns": None} | {
        "received_ns": first["received_ns"]
    }
    assert told[1] == first | {"withdrawn": True}


def test_ray_is_looked_for_again_beside_what_auto_finds(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent on Ray goes on asking for Ray's drains when they cannot be had at first; what `auto` seeks is given up. A source
    that was named is asked again whatever the launcher."""
    from orchestrator.platforms.engines.native.ray_agent import watching

    asked: list[tuple[list[str], list[str]]] = []

    def watch(sources: Any, on_change: Any, clock: Any, node: str, *, persistent: Any) -> Watcher:
        asked.append(([source.name for source in sources], [source.name for source in persistent]))
        return Watcher([], on_change, clock, node)

    monkeypatch.setattr(notices, "watch", watch)
    watching("auto", NODE, {}, CLOCK)(lambda document: None).stop()
    watching("azure", NODE, {}, CLOCK)(lambda document: None).stop()
    for_agent("azure", NODE, {}, CLOCK)(lambda document: None).stop()
    assert (asked[0][0][0], asked[0][1]) == ("ray", ["ray"])
    assert "azure" in asked[0][0]
    assert asked[1:] == [(["ray", "azure"], ["ray", "azure"]), (["azure"], ["azure"])]


def test_handled_reaches_every_source(recorder: Recorder) -> None:
    """Each source learns that a node is empty."""
    sources: list[Source] = [FakeSource("a"), FakeSource("b")]
    watcher = Watcher(sources, recorder, CLOCK, NODE)
    watcher.handled(NODE)
    watcher.stop()
    assert [source.emptied for source in sources if isinstance(source, FakeSource)] == [[NODE], [NODE]]


# --- the connection ---
def test_a_connection_that_is_not_answered_is_bounded_and_can_be_interrupted() -> None:
    """An address that swallows packets costs the time to connect and no more, and an interrupt ends even that."""
    with socket.socket() as listening, socket.socket() as first, socket.socket() as second:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for filler in (first, second):  # the queue is full: further connections are not answered
            filler.setblocking(False)
            filler.connect_ex(listening.getsockname())
        begun = time.monotonic()
        with pytest.raises(Unreadable):
            Nearby(listening.getsockname(), CLOCK, connect_seconds=0.3, answer_seconds=0.3).get("/")
        assert time.monotonic() - begun < 2.0
        server = Nearby(listening.getsockname(), CLOCK, connect_seconds=30.0)
        threading.Timer(0.2, server.interrupt).start()
        begun = time.monotonic()
        with pytest.raises(Unreadable):
            server.get("/")
        assert time.monotonic() - begun < 3.0
        with pytest.raises(Unreadable, match="stopped"):
            server.get("/")


def test_a_closed_port_is_no_answer() -> None:
    """Where nothing listens there is no answer, and the reason is the system's."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        with pytest.raises(Unreadable, match="refused"):
            Nearby(bound.getsockname(), CLOCK).get("/")


def test_an_agent_approves_azure_events() -> None:
    """The sources that an agent chooses let the machine go early, whether found or named."""
    for text in ("auto", "azure"):
        (source,) = [each for each in choose(text, NODE, {}, CLOCK) if isinstance(each, ScheduledEvents)]
        assert source._acknowledge
