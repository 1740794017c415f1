"""A controller in a thread that speaks the REST contract and does what a test tells it: for what a real one rarely does."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from orchestrator.controller.problems import MEDIA_TYPE, to_problem
from orchestrator.domain.errors import AuthError, Conflict, NotFound, OrchestrateError

TOKEN = "token-of-the-fake"
JOBS = "/v1/namespaces/"


def resource(name: str = "sentiment", phase: str = "Running", **status: Any) -> dict[str, Any]:
    """A TrainingJob as a controller shows it, in the middle of its life unless `status` says otherwise."""
    ended = phase in ("Succeeded", "Failed", "Cancelled")
    return {
        "apiVersion": "orchestrate.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {
            "name": name,
            "namespace": "default",
            "labels": {"team": "search"},
            "uid": f"uid-of-{name}",
            "creationTimestamp": "2026-11-01T10:00:00.000Z",
            "resourceVersion": "7",
        },
        "spec": {"workers": {"min": 2, "max": 2}},
        "status": {
            "phase": phase,
            "reason": "Completed" if phase == "Succeeded" else None,
            "message": "All steps are done." if phase == "Succeeded" else "attempt 1 trains; its first step was 1",
            "startTime": "2026-11-01T10:00:20.000Z",
            "completionTime": "2026-11-01T10:07:42.000Z" if ended else None,
            "worldSize": 2,
            "attempt": 1,
            "workers": {"desired": 2, "ready": 0 if ended else 2},
            "progress": {
                "step": 534 if ended else 412,
                "totalSteps": 534,
                "epoch": 2.0 if ended else 1.5,
                "percent": 100.0 if ended else 77.2,
                "etaSeconds": None if ended else 130.0,
                "loss": 0.4312,
                "samplesPerSecond": None if ended else 85.3,
                "samples": 17064,
                "metrics": {"validation": {"accuracy": 0.8312, "loss": 0.3921}},
            },
            "checkpoint": {"last": {"step": 400, "time": "2026-11-01T10:05:00.000Z", "uri": "/runs/c/step-00000400"}},
            "restarts": {"application": 0, "preemption": 0},
            "cost": {
                "totalUSD": "0.7854",
                "usefulUSD": "0.70",
                "atRiskUSD": "0.00",
                "wastedUSD": {"provisioning": "0.0654", "checkpoint_stall": "0.02"},
                "savedUSD": "0.00",
                "perHourUSD": "0.00" if ended else "6.12",
                "perThousandSamplesUSD": "0.046026723",
                "billed": False,
                "priceSources": ["p3.2xlarge: AWS, us-east-1, 2026-07-20 (example)"],
            },
            "result": {"metrics": {"validation_accuracy": 0.8312}, "modelUri": "/runs/model"} if ended else None,
            **status,
        },
    }


def segments() -> list[dict[str, Any]]:
    second = 10**9
    parts = (
        ("provisioning", 0, 38, 65_400_000),
        ("useful", 38, 450, 700_000_000),
        ("checkpoint_stall", 450, 462, 20_000_000),
    )
    return [
        {
            "machine": "m-1",
            "instanceType": "p3.2xlarge",
            "zone": "us-east-1",
            "capacityType": "on-demand",
            "category": category,
            "start_ns": 1_793_527_200 * second + start * second,
            "end_ns": 1_793_527_200 * second + end * second,
            "cost_nanodollars": cost,
        }
        for category, start, end, cost in parts
    ]


class FakeController:
    """What it holds, by (namespace, name), and what it was asked."""

    def __init__(self) -> None:
        self.jobs: dict[tuple[str, str], dict[str, Any]] = {}
        self.asked: list[tuple[str, str]] = []
        self.limits: list[str | None] = []
        """What each resume said that the job may cost."""
        self.submitted: list[tuple[dict[str, Any], str | None, bool]] = []
        self.story: list[dict[str, Any]] = []
        self.checkpoints: list[dict[str, Any]] = []
        self.log_lines: list[tuple[str, str]] = []
        self.on_look: Callable[[dict[str, Any], int], None] = lambda job, look: None
        """Called before the answer to each long poll, with the job and the number of the poll."""
        self.on_submit: Callable[[dict[str, Any]], str] = lambda document: "created"
        """Gives Orchestrate-Result, or raises what is answered."""
        self.headers = {"Orchestrate-Api": "v1", "Orchestrate-Version": "9.9.9"}
        self.broken: Callable[[str], bool] = lambda path: False
        """Whether to hang up instead of answering this path."""
        self.url = ""
        self._looks = 0

    def add(self, job: dict[str, Any]) -> dict[str, Any]:
        self.jobs[job["metadata"]["namespace"], job["metadata"]["name"]] = job
        return job

    def end(self, job: dict[str, Any], phase: str, reason: str, message: str = "") -> None:
        job["status"].update(phase=phase, reason=reason, message=message, completionTime="2026-11-01T10:07:42.000Z")

    def answer(self, method: str, path: str, query: Mapping[str, str], body: Any, headers: Mapping[str, str]) -> Any:
        """(status, document, result header) of one request. Raises `OrchestrateError` for a problem."""
        self.asked.append((method, path))
        if headers.get("Authorization") != f"Bearer {TOKEN}":
            raise AuthError("the token is wrong", hint="use the one of the home folder")
        if path == "/v1/info":
            return 200, {"product": "orchestrate", "version": "9.9.9", "api": "v1", "engine": "fake"}, None
        if path == "/v1/prices":
            offer = {"instanceType": "x1", "zone": "here", "gpus": 1, "onDemandUSD": "3.06", "spotUSD": None}
            return (
                200,
                {"source": "a test", "date": "2026-01-01", "billed": True, "local": "x1", "offers": [offer]},
                None,
            )
        parts = path.removeprefix("/v1/").split("/")
        if parts[-1] == "trainingjobs" and method == "GET":
            namespace = parts[1] if parts[0] == "namespaces" else None
            items = [
                job
                for (where, _), job in self.jobs.items()
                if namespace in (None, where) and query.get("phase") in (None, job["status"]["phase"])
            ]
            return 200, {"kind": "TrainingJobList", "items": items, "metadata": {"resourceVersion": "7"}}, None
        if parts[-1] == "trainingjobs":
            result = self.on_submit(body)
            self.submitted.append((body, headers.get("Idempotency-Key"), query.get("rerun") == "true"))
            job = self.jobs.get((parts[1], body["metadata"]["name"])) or self.add(
                resource(body["metadata"]["name"], "Pending", message="", progress={}, cost=None, checkpoint=None)
            )
            return 201 if result == "created" else 200, job, result
        key = (parts[1], parts[3])
        if key not in self.jobs:
            raise NotFound(f"there is no job {key[0]}/{key[1]}", hint="`orchestrate list -A` lists all")
        job, detail = self.jobs[key], parts[4] if len(parts) > 4 else ""
        if method == "POST":
            if detail == "suspend" and job["status"]["phase"] in ("Succeeded", "Failed", "Cancelled"):
                raise Conflict(f"the job has ended; it is {job['status']['phase']}")
            if detail == "cancel":
                self.end(job, "Cancelled", "Cancelled")
            elif detail == "suspend":
                job["status"]["phase"] = "Suspended"
            elif detail == "resume":
                self.limits.append(query.get("limitUSD"))
                job["status"]["phase"] = "Running"
            elif detail == "scale":
                workers = int(query["workers"])
                if workers > job["spec"]["workers"]["max"]:
                    raise Conflict(f"cannot scale {key[0]}/{key[1]}: {workers} workers is not a size that it may have")
                job["status"]["workers"].update(desired=workers, ready=workers)
            return 202, job, None
        if detail == "" and "afterVersion" in query:
            self._looks += 1
            self.on_look(job, self._looks)
        documents: dict[str, Any] = {
            "": job,
            "events": {"items": [item for item in self.story if item["number"] > int(query.get("after", 0))]},
            "checkpoints": {"items": self.checkpoints},
            "cost": {**(job["status"]["cost"] or {}), "segments": segments()},
        }
        return 200, documents[detail], None

    def log_stream(self) -> bytes:
        lines = [f"data: {json.dumps({'rank': rank, 'line': line})}\n\n" for rank, line in self.log_lines]
        return "".join([": heartbeat\n\n", *lines, "event: end\ndata: {}\n\n"]).encode()


def _handler(controller: FakeController) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            parts = urlsplit(self.path)
            if controller.broken(parts.path):
                self.close_connection = True
                return
            query = {key: values[0] for key, values in parse_qs(parts.query).items()}
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            result, kind = None, "application/json"
            try:
                if parts.path.endswith("/logs"):
                    status, text, kind = 200, controller.log_stream(), "text/event-stream"
                else:
                    body = json.loads(raw) if raw else None
                    status, document, result = controller.answer(
                        self.command, parts.path, query, body, dict(self.headers)
                    )
                    text = json.dumps(document).encode()
            except OrchestrateError as error:
                status, kind = error.http_status, MEDIA_TYPE
                text = json.dumps(to_problem(error)).encode()
            self.send_response(status)
            for name, value in controller.headers.items():
                self.send_header(name, value)
            if result is not None:
                self.send_header("Orchestrate-Result", result)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = _serve

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    return Handler


@contextmanager
def serving(controller: FakeController) -> Iterator[FakeController]:
    """The controller at a free port of this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(controller))
    server.daemon_threads = True
    controller.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.02), name="fake-controller")
    thread.start()
    try:
        yield controller
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
