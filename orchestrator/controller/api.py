"""The REST API `/v1` of a controller: routes that ask the controller and write what it says as JSON.

Responses are written with `json.dumps` from plain dictionaries: FastAPI's own encoder walks every value in Python, which
a list of five hundred jobs cannot afford. Numbers that JSON lacks (a loss that is not a number) become null.

Long polls and log streams wait on the event loop and hold no thread. A commit wakes the long polls of the jobs that it is
about. Log files give no notice of growth, so a stream that has nothing to send looks again four times a second.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import math
import os
import secrets
import threading
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import Response

from orchestrator.controller import openapi
from orchestrator.controller.core import Controller
from orchestrator.controller.http_server import (
    API,
    MAX_BODY_BYTES,
    Guard,
    Hosts,
    HttpServer,
    problem_response,
    serve_http,
    too_large,
)
from orchestrator.controller.journal.base import JobRecord
from orchestrator.controller.logfiles import LogFollower, LogLine
from orchestrator.controller.metrics import Sampler
from orchestrator.controller.views import checkpoint_document, cost_document, segment_documents
from orchestrator.domain.clock import NANOSECONDS_PER_SECOND, to_rfc3339
from orchestrator.domain.errors import (
    Conflict,
    ControllerUnreachable,
    InvalidSpec,
    NotFound,
    OrchestrateError,
    Problem,
    UsageError,
)
from orchestrator.domain.money import parse_dollars
from orchestrator.lifecycle import Phase
from orchestrator.storage import Retention, Store, local_folder, open_store
from orchestrator.telemetry import render

__all__ = ["HttpServer", "create_app", "serve_http"]

POLL_SECONDS = 0.25
"""Pause between two looks at log files that have not grown."""
HEARTBEAT_SECONDS = 15.0
"""A log stream says something at least this often, so that both ends notice when the other is gone."""
MAX_WAIT_SECONDS = 60.0
MAX_PAGE = 1_000
MAX_KEPT_TEXTS = 2_000
"""Ended jobs whose JSON is kept for the next list: some three kilobytes each."""
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
VERBS = ("cancel", "suspend", "checkpoint")


class Changes:
    """Wakes the coroutines that wait for a job when the controller commits something of that job, and only then."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._loop = asyncio.get_running_loop()
        self._bells: dict[str, asyncio.Event] = {}
        """By uid; of the jobs that somebody waits for or waited for. Touched on the loop's thread alone."""
        self._closing = False
        controller.listen(self._committed)

    async def wait(self, uid: str, after_version: int, timeout_seconds: float) -> bool:
        """True as soon as the job is newer than `after_version`, or when that is a version of another controller's life;
        False when the time is up or the server closes."""
        deadline = self._loop.time() + timeout_seconds
        while not self._controller.is_newer(uid, after_version):
            left = deadline - self._loop.time()
            if left <= 0 or self._closing:
                return False
            bell = self._bells.setdefault(uid, asyncio.Event())
            try:
                await asyncio.wait_for(bell.wait(), left)
            except TimeoutError:
                return False
        return True

    def close(self) -> None:
        """Let everyone go. From any thread, more than once, and after the loop has ended."""

        def let_go() -> None:
            self._closing = True
            self._ring(list(self._bells))

        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(let_go)

    def _committed(self, uids: Collection[str]) -> None:
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._ring, uids)

    def _ring(self, uids: Iterable[str]) -> None:
        for uid in uids:
            if (bell := self._bells.pop(uid, None)) is not None:
                bell.set()


def create_app(controller: Controller, token: str, stop: Callable[[], None] | None = None) -> FastAPI:
    """The application. `stop` ends the server's process; without it `/v1/server/stop` is refused."""
    closing = threading.Event()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.changes = Changes(controller)
        try:
            yield
        finally:
            close()

    app = FastAPI(
        title="orchestrate", lifespan=lifespan, docs_url=None, redoc_url=None, redirect_slashes=False, openapi_url=None
    )

    def close() -> None:
        """Long polls answer and streams end. From any thread."""
        closing.set()
        if (changes := getattr(app.state, "changes", None)) is not None:
            changes.close()

    app.state.closing, app.state.close = closing, close
    app.state.hosts = Hosts()
    app.add_middleware(Guard, token=token, hosts=app.state.hosts)
    _say_errors_as_problems(app)
    _serve_health(app, controller)
    _serve_server(app, controller, stop)
    _serve_jobs(app, controller)
    _serve_details(app, controller)
    _serve_logs(app, controller)
    return app


def _say_errors_as_problems(app: FastAPI) -> None:
    @app.exception_handler(OrchestrateError)
    async def ours(request: Request, error: OrchestrateError) -> Response:
        return problem_response(error)

    @app.exception_handler(RequestValidationError)
    async def parameters(request: Request, error: RequestValidationError) -> Response:
        said = "; ".join(f"{'.'.join(map(str, e['loc'][1:]))}: {e['msg']}" for e in error.errors())
        return problem_response(UsageError(said, hint="GET /openapi.json describes the parameters"))

    @app.exception_handler(HTTPException)
    async def routing(request: Request, error: HTTPException) -> Response:
        if error.status_code == 404:
            what = f"there is nothing at {request.url.path}"
            return problem_response(NotFound(what, hint="GET /openapi.json lists what there is"))
        what = f"{request.method} {request.url.path}: {error.detail}"
        return problem_response(UsageError(what), error.status_code)


def _serve_health(app: FastAPI, controller: Controller) -> None:
    sampler = Sampler(controller)

    @app.get("/healthz", tags=["health"])
    def healthz() -> Response:
        """The process answers."""
        return _json({"status": "ok"})

    @app.get("/readyz", tags=["health"])
    def readyz() -> Response:
        """The journal takes commits and decisions are being made."""
        if not controller.ready:
            return problem_response(ControllerUnreachable("the controller is not ready", hint="see its log"))
        return _json({"status": "ok"})

    @app.get("/metrics", tags=["health"])
    def metrics() -> Response:
        """Prometheus text format; docs/metrics.md explains every metric."""
        return Response(render(sampler.snapshot()), media_type=METRICS_TYPE)

    @app.get("/openapi.json", include_in_schema=False)
    def openapi_document() -> Response:
        if app.openapi_schema is None:
            app.openapi_schema = openapi.describe(app)
        return _json(app.openapi_schema)


def _serve_server(app: FastAPI, controller: Controller, stop: Callable[[], None] | None) -> None:
    @app.get("/v1/info", tags=["server"])
    def info() -> Response:
        """Who answers here: product, versions, engine, home, epoch."""
        return _json({**controller.info(), "api": API, "pid": os.getpid()})

    @app.get("/v1/prices", tags=["server"])
    def prices() -> Response:
        """The price book that machines are priced from."""
        return _json(controller.prices.to_document())

    @app.post("/v1/server/stop", status_code=202, tags=["server"])
    def stop_server() -> Response:
        """End the server's process; running jobs go on where their drivers outlive it."""
        if stop is None:
            raise UsageError("this server is not stopped over its API", hint="use `orchestrate server stop`")
        stop()
        return _json({"status": "stopping"}, 202)


def _serve_jobs(app: FastAPI, controller: Controller) -> None:
    texts = Texts(controller)
    jobs_path = "/v1/namespaces/{namespace}/trainingjobs"
    job_path = f"{jobs_path}/{{name}}"

    @app.post(
        jobs_path,
        tags=["jobs"],
        status_code=201,
        responses=openapi.answers("TrainingJob", 201, "Created.")
        | openapi.answers("TrainingJob", 200, "Unchanged, or submitted before with this key."),
        openapi_extra={
            "requestBody": {"required": True, **openapi.reference("TrainingJob")},
            "parameters": [
                {"name": "Idempotency-Key", "in": "header", "required": False, "schema": {"type": "string"}},
            ],
        },
    )
    async def submit(namespace: str, request: Request, rerun: bool = False) -> Response:
        """Accept a job; it is durable when this answers. The header `Orchestrate-Result` says created, unchanged (the
        same job is active) or replayed (the same idempotency key)."""
        body = await _body(request)
        if body is None:
            return too_large()
        document = _submitted_document(body, namespace)
        key = request.headers.get("idempotency-key")
        answer = await run_in_threadpool(controller.submit, document, key, rerun)
        resource = await run_in_threadpool(controller.view, answer.record)
        response = _json(resource, 201 if answer.result == "created" else 200)
        response.headers["Orchestrate-Result"] = answer.result
        return response

    def page_of(
        namespace: str | None,
        phase: Annotated[Phase | None, Query(description="Only jobs in this phase.")] = None,
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE, description="Jobs on a page.")] = 500,
        after: Annotated[
            str | None, Query(alias="continue", description="`metadata.continue` of the page before.")
        ] = None,
    ) -> Response:
        """Current jobs, newest first."""
        return _json_text(_page(controller, texts, namespace, phase, limit, after))

    @app.get("/v1/trainingjobs", tags=["jobs"], responses=openapi.answers("TrainingJobList"))
    def list_everywhere(
        phase: Annotated[Phase | None, Query(description="Only jobs in this phase.")] = None,
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE, description="Jobs on a page.")] = 500,
        after: Annotated[
            str | None, Query(alias="continue", description="`metadata.continue` of the page before.")
        ] = None,
    ) -> Response:
        """Current jobs of all namespaces, newest first."""
        return page_of(None, phase, limit, after)

    app.get(jobs_path, tags=["jobs"], responses=openapi.answers("TrainingJobList"))(page_of)

    @app.get(job_path, tags=["jobs"], responses=openapi.answers("TrainingJob"))
    async def get(
        request: Request,
        namespace: str,
        name: str,
        after_version: Annotated[
            int | None,
            Query(
                alias="afterVersion", description="Answer when the job is newer than this version, or the time is up."
            ),
        ] = None,
        wait_seconds: Annotated[float, Query(alias="waitSeconds", ge=0, le=MAX_WAIT_SECONDS)] = 20.0,
    ) -> Response:
        """The current job of that name; with `afterVersion` a long poll."""
        record = controller.job(namespace, name)
        if after_version is not None:
            changes: Changes = request.app.state.changes
            await changes.wait(record.uid, after_version, wait_seconds)
            record = controller.job(namespace, name)
        return _json(await run_in_threadpool(controller.view, record))

    def ask(verb: str) -> Callable[[str, str], Response]:
        def route(namespace: str, name: str) -> Response:
            return _json(controller.view(controller.request(namespace, name, verb)), 202)

        route.__name__ = verb
        route.__doc__ = f"Ask the job to {verb}; it is journaled when this answers."
        return route

    for verb in VERBS:
        answers = openapi.answers("TrainingJob", 202, "Asked.")
        app.post(f"{job_path}/{verb}", tags=["jobs"], status_code=202, responses=answers)(ask(verb))

    @app.post(
        f"{job_path}/resume", tags=["jobs"], status_code=202, responses=openapi.answers("TrainingJob", 202, "Asked.")
    )
    def resume(
        namespace: str,
        name: str,
        limit_usd: Annotated[
            str | None, Query(alias="limitUSD", description="Dollars that the job may cost in all from now on.")
        ] = None,
    ) -> Response:
        """Continue a suspended job; it is journaled when this answers."""
        try:
            limit = None if limit_usd is None else parse_dollars(limit_usd)
        except ValueError as error:
            raise UsageError(f"limitUSD: {error}", hint='write a decimal such as "12.50"') from error
        return _json(controller.view(controller.resume(namespace, name, limit)), 202)

    @app.post(
        f"{job_path}/scale", tags=["jobs"], status_code=202, responses=openapi.answers("TrainingJob", 202, "Asked.")
    )
    def scale(
        namespace: str,
        name: str,
        workers: Annotated[int, Query(ge=1, description="Workers that are wished for; fewer when there is no room.")],
    ) -> Response:
        """Ask an elastic job to have so many workers; it is journaled when this answers."""
        return _json(controller.view(controller.scale(namespace, name, workers)), 202)


def _serve_details(app: FastAPI, controller: Controller) -> None:
    job_path = "/v1/namespaces/{namespace}/trainingjobs/{name}"

    @app.get(f"{job_path}/events", tags=["details"])
    def events(
        namespace: str,
        name: str,
        after: Annotated[int, Query(ge=0)] = 0,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 1_000,
    ) -> Response:
        """The job's story, numbered from 1; those numbered above `after`."""
        record = controller.job(namespace, name)
        items = [
            {
                "number": number,
                "time": to_rfc3339(entry.at_ns),
                "event": entry.event,
                "phaseBefore": entry.phase_before,
                "phase": entry.phase_after,
                "reason": entry.reason,
                "message": entry.message,
            }
            for number, entry in controller.journal.story(record.uid, after, limit)
        ]
        return _json({"items": items})

    @app.get(f"{job_path}/steps", tags=["details"])
    def steps(
        namespace: str,
        name: str,
        after: Annotated[int, Query(ge=-1)] = -1,
        limit: Annotated[int, Query(ge=1, le=100_000)] = 10_000,
    ) -> Response:
        """Optimizer steps above `after`; a step that was redone is there once an attempt."""
        record = controller.job(namespace, name)
        rows = controller.journal.steps(record.uid, after, limit)
        return _json({"items": [{"attempt": row.attempt, "step": row.step, **row.values} for row in rows]})

    @app.get(f"{job_path}/checkpoints", tags=["details"])
    def checkpoints(
        namespace: str,
        name: str,
        verify_bytes: Annotated[
            bool, Query(alias="verify", description="Read every byte and compare the hashes.")
        ] = False,
    ) -> Response:
        """Checkpoints, the newest first, whole or refused with the reason."""
        record = controller.job(namespace, name)
        store = _checkpoints(controller, record)
        found = store.list()
        if verify_bytes:
            found = [store.verify(listed.uri) if listed.whole else listed for listed in found]
        return _json({"items": [checkpoint_document(listed) for listed in found]})

    @app.post(f"{job_path}/checkpoints/prune", tags=["details"])
    def prune(
        namespace: str,
        name: str,
        keep_last: Annotated[int, Query(alias="keepLast", ge=1, description="How many of the newest stay.")],
        keep_best: Annotated[bool, Query(alias="keepBest", description="Whether the best one stays.")] = True,
        keep_every_seconds: Annotated[
            int | None, Query(alias="keepEverySeconds", ge=1, description="One of each such period stays.")
        ] = None,
        dry_run: Annotated[bool, Query(alias="dryRun", description="Delete nothing.")] = False,
    ) -> Response:
        """Delete the checkpoints that nothing keeps, and say which; never the newest one that is whole."""
        record = controller.job(namespace, name)
        if not keep_best and not record.state.phase.ended:
            what = f"{namespace}/{name} has not ended, and takes its best checkpoint at the end"
            raise Conflict(what, hint="keep the best one, or wait until it has ended")
        every_ns = None if keep_every_seconds is None else keep_every_seconds * NANOSECONDS_PER_SECOND
        store = _checkpoints(controller, record)
        doomed = store.doomed(Retention(keep_last, keep_best, every_ns))
        if doomed and not dry_run:
            store.prune(Retention(keep_last, keep_best, every_ns))
        return _json({"items": [checkpoint_document(listed) for listed in doomed]})

    @app.get(f"{job_path}/cost", tags=["details"])
    def cost(namespace: str, name: str) -> Response:
        """What the job has cost until now, by category and segment; amounts in dollars are decimal strings."""
        record = controller.job(namespace, name)
        statement = controller.statement(record.uid)
        document = cost_document(statement, record.samples_kept)
        return _json({**document, "segments": segment_documents(statement)})


def _serve_logs(app: FastAPI, controller: Controller) -> None:
    @app.get(
        "/v1/namespaces/{namespace}/trainingjobs/{name}/logs",
        tags=["details"],
        responses={200: {"description": "Lines.", "content": {"text/plain": {}, "text/event-stream": {}}}},
    )
    def logs(
        request: Request,
        namespace: str,
        name: str,
        rank: Annotated[
            str, Query(pattern=r"^(\d{1,6}|all|driver)$", description="A rank, `driver` or `all`.")
        ] = "all",
        follow: bool = False,
        tail: Annotated[int | None, Query(ge=0, description="Only so many last lines of each file.")] = None,
    ) -> Response:
        """Log lines as text; with `follow`, or when `text/event-stream` is accepted, as server-sent events: one JSON
        `{"rank", "line"}` each, and `event: end` when no more will come."""
        record = controller.job(namespace, name)
        reader = LogFollower(controller.home.run_dir(record.uid) / "logs", rank, tail)
        if not follow and "text/event-stream" not in request.headers.get("accept", ""):
            return StreamingResponse(_as_text(reader, rank), media_type="text/plain; charset=utf-8")
        closing: threading.Event = request.app.state.closing

        def over() -> str | None:
            """Why no more lines will come."""
            if closing.is_set():
                return "the controller is stopping"
            if not follow:
                return "that is all there is"
            try:
                now = controller.job(namespace, name)
            except NotFound:
                return "the job was removed"
            if now.uid != record.uid:
                return "another job has taken the name"
            return f"the job is {now.state.phase}" if now.state.phase.ended else None

        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        stream = _as_events(reader, over)
        return StreamingResponse(stream, headers=headers, media_type="text/event-stream")


async def _as_text(reader: LogFollower, rank: str) -> AsyncIterator[str]:
    prefixed = rank == "all"
    while lines := await run_in_threadpool(reader.rest):
        yield "".join(f"{'' if not prefixed else f'[{one.rank}] '}{one.line}\n" for one in lines)


async def _as_events(reader: LogFollower, over: Callable[[], str | None]) -> AsyncIterator[str]:
    def event(line: LogLine) -> str:
        return f"data: {json.dumps({'rank': line.rank, 'line': line.line})}\n\n"

    quiet_seconds = 0.0
    yield ": the log of a job\n\n"
    while True:
        why = over()  # asked before reading, so that what was written until then is read
        lines = await run_in_threadpool(reader.rest if why else reader.read)
        if lines:
            quiet_seconds = 0.0
            yield "".join(map(event, lines))
        elif why is not None:
            yield f"event: end\ndata: {json.dumps({'reason': why})}\n\n"
            return
        else:
            await asyncio.sleep(POLL_SECONDS)
            quiet_seconds += POLL_SECONDS
            if quiet_seconds >= HEARTBEAT_SECONDS:
                quiet_seconds = 0.0
                yield ": still here\n\n"


async def _body(request: Request) -> bytes | None:
    """The request's body; None when it is larger than allowed, whatever its headers announced."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            return None
    return bytes(body)


def _submitted_document(body: bytes, namespace: str) -> dict[str, Any]:
    """The job in the body, in the namespace of the path. Raises `InvalidSpec`."""

    def wrong(path: str, what: str, hint: str) -> InvalidSpec:
        return InvalidSpec([Problem(path, what, hint)])

    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise wrong("", f"the body is not JSON ({error})", "send the TrainingJob as JSON") from error
    if not isinstance(document, dict):
        raise wrong("", "the body is not a JSON object", "send the TrainingJob as JSON")
    metadata = document.get("metadata", {})
    if not isinstance(metadata, dict):
        raise wrong("metadata", "is not a mapping", "write metadata: {name: ...}")
    named = metadata.get("namespace", namespace)
    if named != namespace:
        what = f"{named!r} is not the namespace of the address, {namespace!r}"
        raise wrong("metadata.namespace", what, "make them agree")
    return {**document, "metadata": {**metadata, "namespace": namespace}}


class Texts:
    """Jobs as JSON, for lists. A job that has ended changes no more, so its text is kept but for the version that it is
    read at. Each job is written by itself, so that the dictionaries of one are gone before those of the next are made:
    five hundred alive at once would set off the garbage collector, which walks every job in memory."""

    def __init__(self, controller: Controller, most: int = MAX_KEPT_TEXTS) -> None:
        self._controller = controller
        self._most = most
        self._lock = threading.Lock()
        self._kept: dict[str, tuple[JobRecord, str, str]] = {}
        self._mark = secrets.token_hex(16)
        """Stands where the version belongs; nobody can guess it, so no job's own text holds it."""

    def of(self, record: JobRecord, version: int) -> str:
        kept = self._kept.get(record.uid)
        if kept is None or kept[0] is not record:
            document = self._controller.view(record)
            if not record.state.phase.ended:
                return _text(document)
            marked = {**document, "metadata": {**document["metadata"], "resourceVersion": self._mark}}
            before, _, behind = _text(marked).partition(self._mark)
            kept = record, before, behind
            with self._lock:
                self._kept.pop(record.uid, None)
                if len(self._kept) >= self._most:
                    del self._kept[next(iter(self._kept))]
                self._kept[record.uid] = kept
        return f"{kept[1]}{version}{kept[2]}"


def _page(
    controller: Controller, texts: Texts, namespace: str | None, phase: Phase | None, limit: int, after: str | None
) -> str:
    """A TrainingJobList as JSON."""
    version = controller.version
    records = controller.jobs(namespace)
    if phase is not None:
        records = [record for record in records if record.state.phase is phase]
    if after is not None:
        place = _place(after)
        records = [record for record in records if (-record.created_ns, record.uid) > place]
    page = records[:limit]
    more = _cursor(page[-1]) if len(records) > limit else None
    metadata = _text({"continue": more, "resourceVersion": str(version)})
    items = ",".join([texts.of(record, version) for record in page])
    return f'{{"kind":"TrainingJobList","items":[{items}],"metadata":{metadata}}}'


def _cursor(record: JobRecord) -> str:
    return base64.urlsafe_b64encode(f"{record.created_ns} {record.uid}".encode()).decode()


def _place(cursor: str) -> tuple[int, str]:
    try:
        created, _, uid = base64.urlsafe_b64decode(cursor.encode()).decode().partition(" ")
        return -int(created), uid
    except (ValueError, binascii.Error) as error:
        raise UsageError(
            f"continue: {cursor!r} is not from a list of this server", hint="start from the first page"
        ) from error


def _checkpoints(controller: Controller, record: JobRecord) -> Store:
    """The store of a job's checkpoints; a relative folder is meant from where the job was submitted."""
    uri = controller.home.checkpoint_uri(
        record.uid, record.name, record.document["spec"].get("checkpoint", {}).get("uri")
    )
    local = "://" not in uri or uri.startswith("file://")
    return open_store(str(Path(record.working_dir, local_folder(uri))) if local else uri)


def _json(document: Any, status: int = 200) -> Response:
    return _json_text(_text(document), status)


def _json_text(text: str, status: int = 200) -> Response:
    return Response(text, status, media_type="application/json")


_ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False)


def _text(document: Any) -> str:
    try:
        return _ENCODER.encode(document)
    except ValueError:
        return _ENCODER.encode(_with_nulls(document))


def _with_nulls(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _with_nulls(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_with_nulls(item) for item in value]
    return value
