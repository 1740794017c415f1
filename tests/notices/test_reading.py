"""What each source makes of what it reads: payloads, dates, taints, files, names. No server here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.clock import ManualClock, to_rfc3339
from orchestrator.domain.errors import UsageError
from orchestrator.domain.notices import Notice, NoticeKind
from orchestrator.platforms.notices import choose
from orchestrator.platforms.notices.aws import read_action, read_maintenance, read_rebalance
from orchestrator.platforms.notices.base import NotHere, Sighting, Unreadable, instant_ns, seconds
from orchestrator.platforms.notices.file import NoticeFile
from orchestrator.platforms.notices.given import Absent
from orchestrator.platforms.notices.kubernetes import TAINTS, in_cluster, kubernetes, node_view, pod_view
from orchestrator.platforms.notices.nearby import Answer

SEP_18 = 1_789_719_720 * 10**9  # 2026-09-18T08:22:00Z
INTERRUPTION, DRAIN = NoticeKind.INTERRUPTION, NoticeKind.DRAIN

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=8,
)


def answer(document: Any, received_ns: int = SEP_18, date: str | None = None) -> Answer:
    headers = {} if date is None else {"date": date}
    return Answer(200, headers, json.dumps(document).encode(), received_ns)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-09-18T08:22:00Z", SEP_18),
        ("2026-09-18T10:22:00+02:00", SEP_18),
        ("2026-09-18T08:22:00.250Z", SEP_18 + 250_000_000),
        ("Fri, 18 Sep 2026 08:22:00 GMT", SEP_18),
        ("18 Sep 2026 08:22:00 GMT", SEP_18),
        (" 2026-09-18T08:22:00 ", SEP_18),
        ("", None),
        ("soon", None),
        (17, None),
        (None, None),
    ],
)
def test_instants_are_read_as_clouds_write_them(text: object, expected: int | None) -> None:
    """RFC 3339 and RFC 1123 with and without the weekday are read to the nanosecond; anything else is no instant."""
    assert instant_ns(text) == expected


@given(st.text())
def test_no_text_breaks_the_reading_of_instants(text: str) -> None:
    """Whatever a server writes for a date, reading it gives an instant or nothing."""
    assert instant_ns(text) is None or isinstance(instant_ns(text), int)


@given(st.integers(0, 4_000_000_000_000))
def test_an_instant_survives_being_written(milliseconds: int) -> None:
    """What is written as RFC 3339 with milliseconds is read as the same instant."""
    assert instant_ns(to_rfc3339(milliseconds * 10**6)) == milliseconds * 10**6


@pytest.mark.parametrize("action", ["terminate", "stop"])
def test_an_instance_action_is_an_interruption(action: str) -> None:
    """Terminate and stop end at the time that EC2 tells."""
    view = read_action(answer({"action": action, "time": "2026-09-18T08:22:00Z"}))
    assert view == {"instance-action": Sighting(INTERRUPTION, SEP_18)}


def test_hibernation_begins_at_once() -> None:
    """EC2 gives no two minutes before it hibernates a machine."""
    view = read_action(answer({"action": "hibernate", "time": "2026-09-18T08:24:00Z"}))
    assert view == {"instance-action": Sighting(INTERRUPTION, lead_ns=0)}


def test_an_action_with_an_unreadable_time_is_still_one() -> None:
    """A time that cannot be read leaves an interruption without a deadline, not none."""
    assert read_action(answer({"action": "terminate", "time": "?"})) == {"instance-action": Sighting(INTERRUPTION)}


@pytest.mark.parametrize(
    ("date", "expected_seconds"),
    [
        (None, 120),
        ("Fri, 18 Sep 2026 08:20:01 GMT", 120),  # a second apart: one clock
        ("Fri, 18 Sep 2026 08:10:00 GMT", 719),  # theirs is ten minutes behind: 720 s are left, at least 719
        ("Fri, 18 Sep 2026 08:21:50 GMT", 9),  # theirs is 110 s ahead
        ("yesterday", 120),
    ],
)
def test_deadlines_are_put_on_our_clock(date: str | None, expected_seconds: int) -> None:
    """When the server's clock differs from ours by more than two seconds, what is left of the window counts, rounded down."""
    now = SEP_18 - seconds(120)
    view = read_action(answer({"action": "terminate", "time": "2026-09-18T08:22:00Z"}, now, date))
    assert view["instance-action"].deadline_ns == now + seconds(expected_seconds)


def test_maintenance_that_is_over_or_cancelled_is_none() -> None:
    """Of scheduled maintenance only what is still to come stands."""
    event = {"EventId": "e-1", "NotBefore": "18 Sep 2026 08:22:00 GMT", "State": "active", "Code": "system-reboot"}
    others = [event | {"EventId": f"e-{state}", "State": state} for state in ("completed", "canceled")]
    assert read_maintenance(answer([event, *others])) == {"e-1": Sighting(NoticeKind.MAINTENANCE, SEP_18)}


@given(anything)
def test_nonsense_from_ec2_is_unreadable_and_nothing_worse(document: Any) -> None:
    """Any JSON at a path of EC2's is read as a view or refused as unreadable."""
    for read in (read_action, read_rebalance, read_maintenance):
        try:
            view = read(answer(document))
        except Unreadable:
            continue
        assert all(isinstance(sighting, Sighting) for sighting in view.values())


@pytest.mark.parametrize("key", TAINTS)
def test_every_taint_means_what_its_setter_means(key: str) -> None:
    """Each taint that announces an end is a notice of its kind for our node, whatever other taints there are."""
    kinds = {
        "node.kubernetes.io/out-of-service": NoticeKind.TERMINATION,
        "node.cloudprovider.kubernetes.io/shutdown": NoticeKind.TERMINATION,
        "cloud.google.com/impending-node-termination": INTERRUPTION,
        "remediator.aks.microsoft.com/unschedulable": INTERRUPTION,
        "aws-node-termination-handler/spot-itn": INTERRUPTION,
        "aws-node-termination-handler/asg-lifecycle-termination": NoticeKind.TERMINATION,
        "aws-node-termination-handler/scheduled-maintenance": NoticeKind.MAINTENANCE,
        "aws-node-termination-handler/rebalance-recommendation": NoticeKind.REBALANCE,
        "ToBeDeletedByClusterAutoscaler": DRAIN,
        "karpenter.sh/disrupted": DRAIN,
        "karpenter.sh/disruption": DRAIN,
    }
    taints = [{"key": "nvidia.com/gpu", "effect": "NoSchedule"}, {"key": key, "value": "1789719720"}]
    view = node_view({"metadata": {"name": "n"}, "spec": {"taints": taints}}, "node-1")
    assert {(name, sighting.kind, sighting.node) for name, sighting in view.items()} == {(key, kinds[key], "node-1")}


@pytest.mark.parametrize(
    "taint",
    [
        "cloud.google.com/gke-spot",
        "kubernetes.azure.com/scalesetpriority",
        "node.kubernetes.io/not-ready",
        "DeletionCandidateOfClusterAutoscaler",
    ],
)
def test_a_spot_node_is_not_a_dying_one(taint: str) -> None:
    """Taints that say what a node is, or that it may be deleted one day, are no notices."""
    assert node_view({"metadata": {}, "spec": {"taints": [{"key": taint, "effect": "NoSchedule"}]}}, "node-1") == {}


def test_a_cordoned_and_a_deleted_node_are_drained() -> None:
    """`kubectl cordon`, `kubectl drain` and the deletion of a node ask for it to be empty, with no time."""
    node = {"metadata": {"deletionTimestamp": "2026-09-18T08:22:00Z"}, "spec": {"unschedulable": True}}
    assert node_view(node, "n") == {"unschedulable": Sighting(DRAIN, node="n"), "deletion": Sighting(DRAIN, node="n")}


def test_a_pod_that_is_deleted_ends_when_its_grace_does() -> None:
    """The deletion timestamp of a pod is the end of its grace; a disruption without one has no deadline."""
    pod: dict[str, Any] = {"metadata": {"name": "p", "deletionTimestamp": "2026-09-18T08:22:00Z"}, "status": {}}
    assert pod_view(pod, "n") == {"disruption": Sighting(NoticeKind.TERMINATION, SEP_18, node="n")}
    for reason in ("PreemptionByScheduler", "DeletionByTaintManager", "EvictionByEvictionAPI", "TerminationByKubelet"):
        condition = {"type": "DisruptionTarget", "status": "True", "reason": reason}
        pod = {"metadata": {"name": "p"}, "status": {"conditions": [condition]}}
        assert pod_view(pod, "n") == {"disruption": Sighting(NoticeKind.TERMINATION, node="n")}
    false = {"type": "DisruptionTarget", "status": "False"}
    assert pod_view({"metadata": {"name": "p"}, "status": {"conditions": [false]}}, "n") == {}


@given(st.dictionaries(st.sampled_from(["metadata", "spec", "status"]), anything))
def test_no_object_breaks_the_reading_of_nodes_and_pods(document: dict[str, Any]) -> None:
    """Whatever an object looks like, it has a view."""
    assert isinstance(node_view(document, "n"), dict)
    assert isinstance(pod_view(document, "n"), dict)


def test_a_file_says_when_and_whom(tmp_path: Path) -> None:
    """One object or several, with an instant, a time to go, an id, another node."""
    path = tmp_path / "notices.json"
    source = NoticeFile(path)
    assert source.look() == {}
    path.write_text(" \n", encoding="utf-8")
    assert source.look() == {}
    path.write_text('{"kind": "drain", "in_seconds": 60}', encoding="utf-8")
    assert source.look() == {"0": Sighting(DRAIN, lead_ns=seconds(60))}
    entries = (
        '[{"kind": "drain"}, {"kind": "interruption", "deadline": "2026-09-18T08:22:00Z", "id": "a", "node": "n"}]'
    )
    path.write_text(entries, encoding="utf-8")
    assert source.look() == {"0": Sighting(DRAIN), "a": Sighting(INTERRUPTION, SEP_18, node="n")}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"kind": "drai', "is not JSON"),
        ("[3]", "is not an object"),
        ('{"kind": "flood"}', "kind 'flood' is none of rebalance, maintenance, drain, interruption, termination"),
        ("{}", "kind None is none of"),
        ('{"kind": "drain", "deadline": "noon"}', "deadline 'noon' is not an instant such as 2026-09-18T08:22:00Z"),
        ('{"kind": "drain", "in_seconds": true}', "in_seconds True is not a number of seconds"),
        ('{"kind": "drain", "in_seconds": -1}', "in_seconds -1 is not a number of seconds"),
        ('{"kind": "drain", "node": 4}', "node 4 is not a name"),
        ('{"kind": ["drain"]}', "is none of"),
    ],
)
def test_a_file_that_is_wrong_says_how(text: str, words: str, tmp_path: Path) -> None:
    """A file that cannot be read as notices is refused in words that name the file, the field and the value."""
    path = tmp_path / "notices.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(Unreadable, match=r"notices\.json") as error:
        NoticeFile(path).look()
    assert words in str(error.value)


@given(anything)
def test_no_json_breaks_the_reading_of_a_file(tmp_path_factory: pytest.TempPathFactory, document: Any) -> None:
    """Whatever JSON a file holds, it is notices or it is refused."""
    path = tmp_path_factory.getbasetemp() / "any-notices.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    try:
        NoticeFile(path).look()
    except Unreadable:
        return


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"source": "aws", "node": "n", "kind": "flood", "received_ns": 1, "deadline_ns": None},
        {"source": "aws", "node": "n", "kind": "drain", "received_ns": 1.5, "deadline_ns": None},
        {"source": "aws", "node": "n", "kind": "drain", "received_ns": 1, "deadline_ns": True},
        {"source": "aws", "node": None, "kind": "drain", "received_ns": 1, "deadline_ns": None},
    ],
)
def test_what_is_not_a_notice_is_refused(document: dict[str, Any]) -> None:
    """A document without the fields of a notice, or with others in them, is a ValueError."""
    with pytest.raises(ValueError, match=r"not a notice|not a valid NoticeKind"):
        Notice.from_document(document)


def test_sources_are_chosen_by_name(tmp_path: Path) -> None:
    """`auto` asks everywhere; names choose; nothing is nothing."""
    clock = ManualClock()

    def names(text: str) -> list[str]:
        return [source.name for source in choose(text, "node-1", {}, clock)]

    three = ["aws", "aws-rebalance", "aws-maintenance"]
    assert names("auto") == [*three, "gcp", "gcp-maintenance", "azure", "kubernetes"]
    assert names("azure, file:/run/n.json") == ["azure", "file"]
    assert names(f"aws,gcp,azure,kubernetes,file:{tmp_path}:b") == [
        *three, "gcp", "gcp-maintenance", "azure", "kubernetes", "file",
    ]  # fmt: skip
    assert names("") == []


@pytest.mark.parametrize("text", ["was", "aws:1", "file", "file:", "auto,ray"])
def test_a_name_that_is_none_is_a_usage_error(text: str) -> None:
    """What names no source is refused with the names that there are."""
    with pytest.raises(UsageError, match=r"is no source of notices; name auto, aws, gcp, azure, kubernetes, file:PATH"):
        choose(text, "node-1", {}, ManualClock())


def test_a_pod_without_a_token_says_so(tmp_path: Path) -> None:
    """Outside a pod, without a token and without names the Kubernetes source is off, with the reason; nothing is asked."""
    clock = ManualClock()
    with pytest.raises(NotHere, match="KUBERNETES_SERVICE_HOST is not set"):
        in_cluster({}, clock)
    pod = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "NODE_NAME": "n"}
    with pytest.raises(NotHere, match="no API token in this pod"):
        in_cluster(pod, clock, tmp_path)
    (tmp_path / "token").write_text("secret", encoding="ascii")
    with pytest.raises(NotHere, match="no certificate of the cluster"):
        in_cluster(pod, clock, tmp_path)
    with pytest.raises(NotHere, match="neither NODE_NAME nor POD_NAME and POD_NAMESPACE are set"):
        kubernetes({"POD_NAME": "p"}, clock, "node-1")
    (absent,) = choose("kubernetes", "node-1", {}, clock)
    assert isinstance(absent, Absent)
    with pytest.raises(NotHere, match="NODE_NAME"):
        absent.probe()
