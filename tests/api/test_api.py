"""The REST API over a real socket, with a real controller behind it."""

from __future__ import annotations

import functools
import json
import socket
import threading
from typing import Any

import pytest

from orchestrator import storage
from orchestrator.controller.api import create_app, serve_http
from orchestrator.controller.client import Client
from orchestrator.domain.errors import AuthError, Conflict, InvalidSpec, NotFound, PlatformError, UsageError
from orchestrator.lifecycle import Phase
from tests.api.conftest import TOKEN, Served
from tests.controller.world import GATES, Gate, document

pytestmark = pytest.mark.integration

ROUTES = [
    ("GET", "/v1/info"),
    ("GET", "/v1/prices"),
    ("GET", "/v1/trainingjobs"),
    ("GET", "/openapi.json"),
    ("GET", "/v1/namespaces/default/trainingjobs/a/logs"),
    ("POST", "/v1/namespaces/default/trainingjobs"),
    ("POST", "/v1/server/stop"),
    ("GET", "/v1/nowhere"),
]


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_everything_but_health_needs_the_token(served: Served, method: str, path: str) -> None:
    """Without a token, with a wrong one and with an empty one, every route answers 401 and does nothing."""
    for given in (None, "Bearer wrong", "Bearer ", TOKEN):
        headers: dict[str, Any] = {} if given is None else {"Authorization": given}
        response, text = served.raw(method, path, token=None, **headers)
        assert response.status == 401, given
        assert response.headers["WWW-Authenticate"] == "Bearer"
        assert json.loads(text)["code"] == "AuthError"
    assert served.stops == []
    with pytest.raises(AuthError, match="token is wrong"):
        Client(served.url, "wrong").info()


def test_health_and_metrics_need_none(served: Served) -> None:
    """Probes and Prometheus come without a token."""
    for path in ("/healthz", "/readyz", "/metrics"):
        assert served.raw("GET", path, token=None)[0].status == 200, path
    response, _ = served.raw("GET", "/metrics", token=None)
    assert "version=0.0.4" in (response.headers["Content-Type"] or "")


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8470", "10.0.0.7", "", "localhost.evil.example"])
def test_a_foreign_host_header_is_refused(served: Served, host: str) -> None:
    """A page that reached us under another name (DNS rebinding) gets nothing, not even metrics."""
    for path in ("/v1/info", "/metrics"):
        response, text = served.raw("GET", path, Host=host)
        assert response.status in (400, 403), text
    for mine in ("localhost", "LOCALHOST:80", f"127.0.0.1:{served.server.port}", "[::1]:99"):
        assert served.raw("GET", "/v1/info", Host=mine)[0].status == 200, mine


def test_a_body_that_is_too_large_is_refused(served: Served) -> None:
    """More than one MiB is refused, whether its size is announced or not, and the client tells it as an error."""
    body = json.dumps({"metadata": {"name": "a" * (1024 * 1024)}}).encode()
    response, text = served.raw("POST", "/v1/namespaces/default/trainingjobs", body)
    assert (response.status, json.loads(text)["code"]) == (413, "UsageError")
    response, text = served.raw("POST", "/v1/namespaces/default/trainingjobs", iter([body]))  # type: ignore[arg-type]
    assert response.status == 413
    with pytest.raises(UsageError, match="more than 1,048,576 bytes"):
        served.client.submit({**document("a"), "more": "x" * 2_000_000})


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"metadata": 3}', b"[" * 100_000, b"\xff\xfe"])
def test_a_body_that_is_no_job_is_refused(served: Served, body: bytes) -> None:
    """What is not a JSON object, or not one with metadata, is an InvalidSpec."""
    response, text = served.raw("POST", "/v1/namespaces/default/trainingjobs", body)
    assert (response.status, json.loads(text)["code"]) == (422, "InvalidSpec")


def test_unknown_routes_methods_and_parameters_are_problems(served: Served) -> None:
    """404, 405 and wrong parameters come as problem+json too."""
    cases = [("GET", "/nowhere", 404, "NotFound"), ("DELETE", "/v1/info", 405, "UsageError")]
    cases += [
        ("GET", "/v1/trainingjobs?limit=0", 400, "UsageError"),
        ("GET", "/v1/trainingjobs?phase=Sad", 400, "UsageError"),
    ]
    cases += [("GET", "/v1/trainingjobs?continue=!", 400, "UsageError")]
    for method, path, status, code in cases:
        response, text = served.raw(method, path)
        assert (response.status, json.loads(text)["code"]) == (status, code), path
        assert response.headers["Content-Type"] == "application/problem+json"


def test_submit_is_idempotent(served: Served) -> None:
    """Created, then unchanged; with a key replayed also after the end; another spec under the name is a conflict."""
    GATES["a"] = Gate()
    first, result = served.client.submit(document("a"), idempotency_key="k1")
    assert result == "created"
    assert served.client.submit(document("a"))[1] == "unchanged"
    again, result = served.client.submit(document("a"), idempotency_key="k1")
    assert (again["metadata"]["uid"], result) == (first["metadata"]["uid"], "replayed")
    with pytest.raises(Conflict, match="another spec"):
        served.client.submit(document("a", steps=11))
    GATES["a"].open(10)
    served.world.until_phase("a", Phase.SUCCEEDED)
    with pytest.raises(Conflict, match="has ended"):
        served.client.submit(document("a"))
    GATES["a"].open(10)
    rerun, result = served.client.submit(document("a"), rerun=True)
    assert result == "created"
    assert rerun["metadata"]["uid"] != first["metadata"]["uid"]
    served.world.until_phase("a", Phase.SUCCEEDED)


def test_a_hundred_concurrent_submits_with_one_key_make_one_job(served: Served) -> None:
    """However many callers submit at once with one key, there is one job, created once."""
    GATES["a"] = Gate()
    results: list[str] = []

    def submit() -> None:
        results.append(served.client.submit(document("a", suspend=True), idempotency_key="k")[1])

    callers = [threading.Thread(target=submit) for _ in range(100)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert sorted(results) == ["created"] + ["replayed"] * 99
    assert len(served.client.list()["items"]) == 1


def test_an_invalid_job_comes_back_with_all_its_problems(served: Served) -> None:
    """The client raises InvalidSpec with every problem, each with its path."""
    bad = document("a")
    bad["spec"]["worker"] = {}
    bad["spec"]["training"]["maxSteps"] = -1
    with pytest.raises(InvalidSpec) as told:
        served.client.submit(bad)
    paths = {problem.path for problem in told.value.problems}
    assert {"spec.worker", "spec.training.maxSteps"} <= paths
    body = json.dumps(in_namespace("a", "default")).encode()
    response, text = served.raw("POST", "/v1/namespaces/other/trainingjobs", body)
    assert response.status == 422
    assert "not the namespace of the address" in json.loads(text)["detail"]


def in_namespace(name: str, namespace: str) -> dict[str, Any]:
    whole = document(name, suspend=True)
    whole["metadata"]["namespace"] = namespace
    return whole


def test_lists_are_paged_newest_first(served: Served) -> None:
    """Pages follow one another without gap or repetition; namespace and phase filter; limit 0 means all."""
    for number in range(7):
        served.client.submit(in_namespace(f"j{number}", "one" if number % 2 else "two"))
    whole = [item["metadata"]["name"] for item in served.client.list(limit=0)["items"]]
    assert whole == [f"j{number}" for number in reversed(range(7))]
    names: list[str] = []
    after: str | None = None
    for _ in range(3):
        page = served.client.list(limit=3, after=after)
        names += [item["metadata"]["name"] for item in page["items"]]
        after = page["metadata"]["continue"]
    assert (names, after) == (whole, None)
    assert {item["metadata"]["namespace"] for item in served.client.list("one")["items"]} == {"one"}
    assert served.client.list(phase="Running")["items"] == []
    assert len(served.client.list(phase="Suspended")["items"]) == 7


def test_a_long_poll_answers_when_something_happens(served: Served) -> None:
    """With the newest version it waits until a change; without one it answers when the time is up."""
    GATES["a"] = Gate()
    resource, _ = served.client.submit(document("a", suspend=True))
    version = int(resource["metadata"]["resourceVersion"])
    quiet = served.client.get("default", "a", after_version=version, wait_seconds=0.2)
    assert quiet["metadata"]["resourceVersion"] == str(version)
    changed: list[dict[str, Any]] = []
    waiting = threading.Event()

    def wait() -> None:
        waiting.set()
        changed.append(served.client.get("default", "a", after_version=version, wait_seconds=30))

    poller = threading.Thread(target=wait)
    poller.start()
    waiting.wait(5)
    served.client.request("default", "a", "cancel")
    poller.join(20)
    assert not poller.is_alive()
    assert changed[0]["status"]["phase"] == "Cancelled"
    other_life = served.client.get("default", "a", after_version=10_000, wait_seconds=30)
    assert other_life["status"]["phase"] == "Cancelled", "a version of an earlier controller is not waited for"


def test_many_long_polls_leave_room_for_others(served: Served) -> None:
    """Sixty callers that wait hold up nobody: a list is answered at once."""
    resource, _ = served.client.submit(document("a", suspend=True))
    version = int(resource["metadata"]["resourceVersion"])
    polls = [
        threading.Thread(target=served.client.get, args=("default", "a", version, 30.0), daemon=True) for _ in range(60)
    ]
    for poll in polls:
        poll.start()
    assert len(Client(served.url, TOKEN, timeout_seconds=5).list()["items"]) == 1
    served.client.request("default", "a", "cancel")
    for poll in polls:
        poll.join(20)
    assert not any(poll.is_alive() for poll in polls)


def test_requests_on_a_job(served: Served) -> None:
    """Verbs are carried out or refused as conflicts; what is not there is NotFound."""
    served.client.submit(document("a", suspend=True))
    with pytest.raises(Conflict, match="does not train now"):
        served.client.request("default", "a", "checkpoint")
    assert served.client.request("default", "a", "cancel")["status"]["phase"] == "Cancelled"
    with pytest.raises(Conflict, match="has ended"):
        served.client.request("default", "a", "resume")
    for call in (
        served.client.get,
        served.client.cost,
        served.client.events,
        served.client.steps,
        served.client.checkpoints,
    ):
        with pytest.raises(NotFound, match="default/nobody"):
            call("default", "nobody")
    with pytest.raises(NotFound):
        list(served.client.logs("default", "nobody"))


def test_details_of_a_finished_job(served: Served) -> None:
    """Events, steps, cost with segments, prices and info tell what happened, and the segments add up to the total."""
    served.world.submit("a", steps=10, allowed=10)
    served.world.until_phase("a", Phase.SUCCEEDED)
    events = served.client.events("default", "a")
    assert [event["number"] for event in events] == list(range(1, len(events) + 1))
    assert events[-1]["phase"] == "Succeeded"
    assert served.client.events("default", "a", after=2, limit=1)[0]["number"] == 3
    assert [step["step"] for step in served.client.steps("default", "a", after=4)] == [5, 6, 7, 8, 9, 10]
    cost = served.client.cost("default", "a")
    total = sum(segment["cost_nanodollars"] for segment in cost["segments"])
    assert round(float(cost["totalUSD"]) * 1e9) == total > 0
    assert served.client.prices()["offers"]
    info = served.client.info()
    assert (info["product"], info["api"], info["engine"]) == ("orchestrate", "v1", "fake")
    _, text = served.raw("GET", "/metrics")
    assert b'orchestrate_job_steps_total{namespace="default",training_job="a",result="kept"} 10' in text


def test_logs_as_text_and_by_rank(served: Served) -> None:
    """Whole files, the last lines of them, one rank or all; an unfinished last line is not lost."""
    served.world.submit("a", steps=10)
    served.log("a", "rank-0.log", "".join(f"[1] line {n}\n" for n in range(5)))
    served.log("a", "rank-1.log", "[1] other\n[1] unfinished")
    _, text = served.raw("GET", "/v1/namespaces/default/trainingjobs/a/logs?rank=0&tail=2")
    assert text == b"[1] line 3\n[1] line 4\n"
    lines = list(served.client.logs("default", "a"))
    assert [one.line for one in lines if one.rank == "1"] == ["[1] other", "[1] unfinished"]
    assert len(lines) == 7
    assert list(served.client.logs("default", "a", rank="driver")) == []
    assert served.raw("GET", "/v1/namespaces/default/trainingjobs/a/logs?rank=../token")[0].status == 400
    GATES["a"].open(10)
    served.world.until_phase("a", Phase.SUCCEEDED)


def test_followed_logs_end_with_the_job(served: Served) -> None:
    """A stream hands out lines as they are written, new files too, and ends by itself when the job has."""
    served.world.submit("a", steps=10)
    served.log("a", "rank-0.log", "[1] first\n")
    stream = served.client.logs("default", "a", follow=True)
    assert next(stream) == ("0", "[1] first")
    served.log("a", "driver.log", "[1] from the driver\n")
    assert next(stream) == ("driver", "[1] from the driver")
    GATES["a"].open(10)
    served.world.until_phase("a", Phase.SUCCEEDED)
    served.log("a", "rank-0.log", "[1] last, without an end of line")
    assert list(stream)[-1:] in ([("0", "[1] last, without an end of line")], [])


def test_closing_the_server_ends_streams_and_polls(served: Served) -> None:
    """A log stream of a running job and a long poll end soon after the server is asked to close."""
    served.world.submit("a", steps=10)
    served.log("a", "rank-0.log", "[1] first\n")
    stream = served.client.logs("default", "a", follow=True)
    next(stream)
    served.server.close()
    assert list(stream) == []
    GATES["a"].open(10)
    served.world.until_phase("a", Phase.SUCCEEDED)


def test_no_secret_in_any_answer(served: Served, env_with_secrets: dict[str, Any]) -> None:
    """Values of variables whose names look secret are `***` everywhere: resource, list, events, logs."""
    served.client.submit(document("a", suspend=True, runtime=env_with_secrets))
    base = "/v1/namespaces/default/trainingjobs/a"
    for path in (
        base,
        "/v1/trainingjobs",
        f"{base}/events",
        f"{base}/logs",
        f"{base}/logs?rank=0",
        f"{base}/cost",
        "/metrics",
    ):
        _, text = served.raw("GET", path)
        assert b"hush" not in text, path
    shown = served.client.get("default", "a")["spec"]["runtime"]["env"]
    assert [variable["value"] for variable in shown] == ["***", "***", "seen"]


def test_scale_over_the_api(served: Served) -> None:
    """A wish for a size is in the answer; a size that the job may not have is a conflict, and no number a usage error."""
    served.client.submit(document("a", suspend=True, workers={"min": 1, "max": 4}))
    status = served.client.scale("default", "a", 3)["status"]
    assert (status["workers"]["desired"], status["worldSize"], status["disruptions"]) == (3, 3, [])
    with pytest.raises(Conflict, match="5 workers is not a size that it may have"):
        served.client.scale("default", "a", 5)
    with pytest.raises(UsageError):
        served.client.scale("default", "a", 0)
    served.client.submit(document("fixed", suspend=True))
    with pytest.raises(Conflict, match="fixed number of workers"):
        served.client.scale("default", "fixed", 1)
    with pytest.raises(NotFound):
        served.client.scale("default", "nobody", 1)


def test_openapi_describes_the_routes_and_the_job(served: Served) -> None:
    """Every route is there, the request body is a TrainingJob, and every reference leads somewhere."""
    _, text = served.raw("GET", "/openapi.json")
    whole = json.loads(text)
    job_path = "/v1/namespaces/{namespace}/trainingjobs/{name}"
    assert {job_path, f"{job_path}/logs", f"{job_path}/cancel", f"{job_path}/scale", "/v1/info", "/metrics"} <= set(
        whole["paths"]
    )
    submit = whole["paths"]["/v1/namespaces/{namespace}/trainingjobs"]["post"]
    assert submit["requestBody"]["content"]["application/json"]["schema"]["$ref"] == "#/components/schemas/TrainingJob"
    assert "spec" in whole["components"]["schemas"]["TrainingJob"]["properties"]
    references = {part for part in text.decode().split('"') if part.startswith("#/")}
    missing = [ref for ref in references if ref.rpartition("/")[2] not in whole["components"]["schemas"]]
    assert missing == []


def test_the_server_is_stopped_on_request_only_where_it_may_be(served: Served) -> None:
    """POST /v1/server/stop calls the given function; a server without one refuses."""
    served.client.stop()
    assert served.stops == ["stop"]
    other = serve_http(create_app(served.world.controller, TOKEN), "127.0.0.1", 0)
    try:
        with pytest.raises(UsageError, match="not stopped over its API"):
            Client(f"http://127.0.0.1:{other.port}", TOKEN).stop()
    finally:
        other.close()


def test_a_port_in_use_and_an_open_address_are_refused(served: Served) -> None:
    """A taken port is told with its number and the way out; beyond loopback one must insist."""
    app = create_app(served.world.controller, TOKEN)
    with pytest.raises(PlatformError, match=f"port {served.server.port} of 127.0.0.1") as told:
        serve_http(app, "127.0.0.1", served.server.port)
    assert "ORCHESTRATE_PORT" in str(told.value)
    with pytest.raises(UsageError, match="--insecure"):
        serve_http(app, "0.0.0.0", 0)  # noqa: S104 - it is refused
    with pytest.raises(PlatformError, match="no address to listen on"):
        serve_http(app, "256.1.2.3", 0, insecure=True)
    open_server = serve_http(app, "0.0.0.0", 0, insecure=True)  # noqa: S104 - for this moment
    try:
        assert Client(f"http://127.0.0.1:{open_server.port}", TOKEN).info()["api"] == "v1"
        with socket.create_connection(("127.0.0.1", open_server.port), timeout=5) as connection:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: 10.1.2.3\r\nConnection: close\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
    finally:
        open_server.close()


def test_a_journal_that_refuses_makes_it_unready(served: Served) -> None:
    """With a full disk a submit is a StorageError and /readyz is 503; when there is room again both work."""
    served.world.journal.full = True
    with pytest.raises(PlatformError, match="disk is full"):
        served.client.submit(document("a", suspend=True))
    assert served.raw("GET", "/readyz")[0].status == 503
    served.world.journal.full = False
    served.client.submit(document("a", suspend=True))
    assert served.raw("GET", "/readyz")[0].status == 200


def test_prune_deletes_what_nothing_keeps(served: Served) -> None:
    """Over the API a job's old checkpoints are named, then deleted; the best one of a job that runs cannot be given up."""
    served.world.submit("a")
    uid = served.world.job("a").uid
    store = storage.open_store(str(served.world.home.run_dir(uid) / "checkpoints"))
    for step in range(1, 5):
        draft = store.draft(step, 1)
        draft.begin()
        entries = [draft.write("trainer.json", [b"{}"])]
        facts = storage.Manifest(step, step, storage.World(1), 1, "context", step, step, 1, best=step == 1)
        draft.commit(facts, entries)
    ask = functools.partial(served.client.prune, "default", "a", keep_last=2)
    assert [item["step"] for item in ask(dry_run=True)] == [2]
    assert [listed.step for listed in store.list()] == [4, 3, 2, 1]
    assert [item["step"] for item in ask()] == [2]
    assert [listed.step for listed in store.list()] == [4, 3, 1]
    with pytest.raises(Conflict, match="has not ended"):
        ask(keep_best=False)
    with pytest.raises(UsageError):
        ask(keep_every_seconds=0)
    with pytest.raises(NotFound):
        served.client.prune("default", "b", keep_last=2)


def test_resume_takes_a_larger_budget(served: Served) -> None:
    """A limit that is no amount is a usage error and changes nothing; a good one holds from then on."""
    served.client.submit(document("a", suspend=True, budget={"limitUSD": "1.00"}))
    with pytest.raises(UsageError, match="limitUSD"):
        served.client.request("default", "a", "resume", "much")
    assert served.client.get("default", "a")["status"]["budgetUSD"] == "1.00"
    assert served.client.request("default", "a", "resume", "2.50")["status"]["budgetUSD"] == "2.50"
