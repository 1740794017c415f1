"""The REST API from the caller's side, with the standard library only: the command line loads it at every verb.

Methods mirror the routes. Errors of the controller come back as the same domain errors. A connection that is refused or
stays silent is `ControllerUnreachable`; an answer that lacks our API version is `WrongServer`, since some other program
has taken the port.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode, urlsplit

from orchestrator.controller.problems import MEDIA_TYPE, from_problem
from orchestrator.domain.errors import ControllerUnreachable, UsageError, WrongServer

API = "v1"
API_HEADER = "Orchestrate-Api"
STREAM_SECONDS = 45.0
"""A log stream that is silent for longer is dead: the controller says something every 15 s."""
MAX_PAGE = 1_000

Documents = list[dict[str, Any]]


class LogLine(NamedTuple):
    rank: str
    """A number, or `driver`."""
    line: str


class Client:
    """A client of the controller at `url`. Raises `UsageError` for an address that is none.

    Every method raises `ControllerUnreachable`, `WrongServer`, `AuthError`, and the errors it names. Safe over threads.
    """

    def __init__(self, url: str, token: str, timeout_seconds: float = 10.0) -> None:
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise UsageError(f"{url!r} is no address ({error})", hint="write http://host:port") from error
        if parts.scheme not in ("http", "https") or host is None:
            raise UsageError(f"{url!r} is no address of a controller", hint="write http://host:port")
        self.url = url.rstrip("/")
        self._secure = parts.scheme == "https"
        self._host, self._port = host, port
        self._base = parts.path.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
        self._timeout_seconds = timeout_seconds

    def info(self) -> dict[str, Any]:
        """Who answers there."""
        document = self._json("GET", "/v1/info")
        if document.get("product") != "orchestrate":
            raise WrongServer(f"{self.url} is not a controller of orchestrate", hint="name another address")
        return document

    def submit(
        self, document: Mapping[str, Any], idempotency_key: str | None = None, rerun: bool = False
    ) -> tuple[dict[str, Any], str]:
        """The resource, durable by now, and `created`, `unchanged` or `replayed`. Raises `InvalidSpec`, `Conflict`."""
        metadata = document.get("metadata")
        namespace = metadata.get("namespace", "default") if isinstance(metadata, Mapping) else "default"
        path = f"/v1/namespaces/{quote(str(namespace), safe='')}/trainingjobs"
        headers = {"Content-Type": "application/json"}
        if idempotency_key is not None:
            headers["Idempotency-Key"] = idempotency_key
        body = json.dumps(document).encode()
        response, text = self._call("POST", path, {"rerun": "true"} if rerun else {}, body, headers)
        return self._parsed(text), response.headers.get("Orchestrate-Result", "created")

    def list(
        self, namespace: str | None = None, *, phase: str | None = None, limit: int = 500, after: str | None = None
    ) -> dict[str, Any]:
        """Current jobs, newest first, at most `limit` (0: all), of one namespace or of all, as a TrainingJobList. When
        there are more, `metadata.continue` is what to give as `after` for the next ones."""
        path = "/v1/trainingjobs" if namespace is None else f"/v1/namespaces/{quote(namespace, safe='')}/trainingjobs"
        items: list[Any] = []
        while True:
            page = MAX_PAGE if limit == 0 else min(MAX_PAGE, limit - len(items))
            query = {"phase": phase, "limit": page, "continue": after}
            whole = self._json("GET", path, query)
            items += whole["items"]
            after = whole["metadata"].get("continue")
            if after is None or (limit and len(items) >= limit):
                return {**whole, "items": items}

    def get(
        self, namespace: str, name: str, after_version: int | None = None, wait_seconds: float = 20.0
    ) -> dict[str, Any]:
        """The current job of that name. With `after_version` it waits up to `wait_seconds` until that is no longer the
        newest version. Raises `NotFound`."""
        if after_version is None:
            return self._json("GET", _job(namespace, name))
        query = {"afterVersion": after_version, "waitSeconds": wait_seconds}
        return self._json("GET", _job(namespace, name), query, extra_seconds=wait_seconds)

    def request(self, namespace: str, name: str, verb: str, limit_usd: str | None = None) -> dict[str, Any]:
        """Ask for `cancel`, `suspend`, `resume` or `checkpoint`; `limit_usd` with `resume`: what the job may cost in all from
        now on. Raises `NotFound`, `Conflict`."""
        query = None if limit_usd is None else {"limitUSD": limit_usd}
        return self._json("POST", f"{_job(namespace, name)}/{verb}", query)

    def scale(self, namespace: str, name: str, workers: int) -> dict[str, Any]:
        """Ask for so many workers. Raises `NotFound`, and `Conflict` for a number that the job may not have."""
        return self._json("POST", f"{_job(namespace, name)}/scale", {"workers": workers})

    def events(self, namespace: str, name: str, after: int = 0, limit: int = 1_000) -> Documents:
        """The job's story above number `after`. Raises `NotFound`, as the following do."""
        return self._items(f"{_job(namespace, name)}/events", {"after": after, "limit": limit})

    def steps(self, namespace: str, name: str, after: int = -1, limit: int = 10_000) -> Documents:
        return self._items(f"{_job(namespace, name)}/steps", {"after": after, "limit": limit})

    def checkpoints(self, namespace: str, name: str, verify: bool = False) -> Documents:
        """Checkpoints, newest first. `verify` reads every byte of them, for which it waits as long as it takes."""
        query = {"verify": "true"} if verify else {}
        return self._items(f"{_job(namespace, name)}/checkpoints", query, extra_seconds=3_600.0 if verify else 0.0)

    def prune(
        self,
        namespace: str,
        name: str,
        *,
        keep_last: int,
        keep_best: bool = True,
        keep_every_seconds: int | None = None,
        dry_run: bool = False,
    ) -> Documents:
        """Delete the checkpoints that nothing keeps; those that went, or with `dry_run` would go. Raises `Conflict`."""
        query = {
            "keepLast": keep_last,
            "keepBest": str(keep_best).lower(),
            "keepEverySeconds": keep_every_seconds,
            "dryRun": str(dry_run).lower(),
        }
        path = f"{_job(namespace, name)}/checkpoints/prune"
        items: Documents = self._json("POST", path, query, extra_seconds=3_600.0)["items"]
        return items

    def cost(self, namespace: str, name: str) -> dict[str, Any]:
        return self._json("GET", f"{_job(namespace, name)}/cost")

    def logs(
        self, namespace: str, name: str, rank: str = "all", follow: bool = False, tail: int | None = None
    ) -> Iterator[LogLine]:
        """Log lines of a rank, of the `driver` or of `all`; with `follow` until the job has ended. The request is made at
        the first line; a stream that breaks off raises `ControllerUnreachable`."""
        query = {"rank": rank, "follow": "true" if follow else None, "tail": tail}
        connection = self._connection(STREAM_SECONDS)
        try:
            headers = {"Accept": "text/event-stream"}
            response = self._response(connection, "GET", f"{_job(namespace, name)}/logs", query, None, headers)
            if response.status >= 300:
                self._refuse(response, response.read())
            yield from self._lines(response)
        except (OSError, HTTPException) as error:
            raise self._unreachable(error) from error
        finally:
            connection.close()

    def prices(self) -> dict[str, Any]:
        return self._json("GET", "/v1/prices")

    def stop(self) -> None:
        """Ask the server's process to end."""
        self._json("POST", "/v1/server/stop")

    def _items(self, path: str, query: Mapping[str, Any], extra_seconds: float = 0.0) -> Documents:
        items: Documents = self._json("GET", path, query, extra_seconds=extra_seconds)["items"]
        return items

    def _json(
        self, method: str, path: str, query: Mapping[str, Any] | None = None, extra_seconds: float = 0.0
    ) -> dict[str, Any]:
        _, text = self._call(method, path, query or {}, None, {}, extra_seconds)
        return self._parsed(text)

    def _parsed(self, text: bytes) -> dict[str, Any]:
        try:
            document = json.loads(text)
        except ValueError as error:
            raise WrongServer(f"{self.url} answers with something that is not JSON", hint="is it a proxy?") from error
        if not isinstance(document, dict):
            raise WrongServer(f"{self.url} answers with something that is not an object", hint="is it a proxy?")
        return document

    def _call(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any],
        body: bytes | None,
        headers: Mapping[str, str],
        extra_seconds: float = 0.0,
    ) -> tuple[HTTPResponse, bytes]:
        connection = self._connection(self._timeout_seconds + extra_seconds)
        try:
            response = self._response(connection, method, path, query, body, headers)
            text = response.read()
        except (OSError, HTTPException) as error:
            raise self._unreachable(error) from error
        finally:
            connection.close()
        if response.status >= 300:
            self._refuse(response, text)
        return response, text

    def _connection(self, timeout_seconds: float) -> HTTPConnection:
        kind = HTTPSConnection if self._secure else HTTPConnection
        return kind(self._host, self._port, timeout=timeout_seconds)

    def _response(
        self,
        connection: HTTPConnection,
        method: str,
        path: str,
        query: Mapping[str, Any],
        body: bytes | None,
        headers: Mapping[str, str],
    ) -> HTTPResponse:
        """The response, known to come from a controller that we can talk to."""
        given = urlencode({key: value for key, value in query.items() if value is not None})
        target = f"{self._base}{path}{'?' if given else ''}{given}"
        try:
            connection.request(method, target, body, {**self._headers, **headers})
        except (BrokenPipeError, ConnectionResetError):
            if body is None:
                raise
            # A server may refuse a body before it has read it all; what it says is waiting to be read.
        response = connection.getresponse()
        theirs = response.headers.get(API_HEADER)
        if theirs is None:
            raise WrongServer(
                f"{self.url} answers, but is not a controller of orchestrate",
                hint="another program has the port; choose another one with ORCHESTRATE_PORT or ORCHESTRATE_URL",
            )
        if theirs != API:
            version = response.headers.get("Orchestrate-Version", "unknown")
            raise WrongServer(
                f"the controller at {self.url} (version {version}) speaks API {theirs}; this is API {API}",
                hint="use the orchestrate of the controller's version, or restart the controller with this one",
            )
        return response

    def _refuse(self, response: HTTPResponse, text: bytes) -> None:
        if response.headers.get_content_type() != MEDIA_TYPE:
            raise WrongServer(f"{self.url} answers {response.status} without a reason", hint="is it a proxy?")
        raise from_problem(self._parsed(text))

    def _unreachable(self, error: Exception) -> ControllerUnreachable:
        why = "it does not answer in time" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
        return ControllerUnreachable(
            f"the controller at {self.url} cannot be reached ({why})",
            hint="`orchestrate server status` tells whether it runs; its log is controller.log in the home folder",
        )

    def _lines(self, response: HTTPResponse) -> Iterator[LogLine]:
        """The events of a stream, each one `data:` line, until `event: end`."""
        ended = False
        while raw := response.readline():
            field, _, value = raw.decode("utf-8").rstrip("\r\n").partition(": ")
            if field == "event":
                ended = value == "end"
            elif field == "data":
                if ended:
                    return
                data = json.loads(value)
                yield LogLine(str(data["rank"]), data["line"])
        raise ConnectionResetError("the log stream broke off")


def _job(namespace: str, name: str) -> str:
    return f"/v1/namespaces/{quote(namespace, safe='')}/trainingjobs/{quote(name, safe='')}"
