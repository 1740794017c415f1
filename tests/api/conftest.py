"""A real controller with the fake engine behind a real HTTP server, and a client of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import pytest

from orchestrator.controller.api import HttpServer, create_app, serve_http
from orchestrator.controller.client import Client
from tests.controller.world import World

TOKEN = "a-token-of-forty-characters-or-so"


@dataclass
class Served:
    """A world, its server, and what a caller needs."""

    world: World
    server: HttpServer
    client: Client
    stops: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.port}"

    def raw(
        self, method: str, path: str, body: bytes | None = None, token: str | None = TOKEN, **headers: str
    ) -> tuple[HTTPResponse, bytes]:
        """One request as any program may make it."""
        connection = HTTPConnection("127.0.0.1", self.server.port, timeout=10)
        try:
            sent = {name.replace("_", "-"): value for name, value in headers.items()}
            if token is not None:
                sent.setdefault("Authorization", f"Bearer {token}")
            connection.request(method, path, body, sent)
            response = connection.getresponse()
            return response, response.read()
        finally:
            connection.close()

    def log(self, name: str, file: str, text: str) -> None:
        folder = self.world.home.run_dir(self.world.job(name).uid) / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / file, "a", encoding="utf-8") as log:
            log.write(text)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    world = World(tmp_path / "home")
    stops: list[str] = []
    server = serve_http(create_app(world.controller, TOKEN, stop=lambda: stops.append("stop")), "127.0.0.1", 0)
    yield Served(world, server, Client(f"http://127.0.0.1:{server.port}", TOKEN), stops)
    server.close()
    world.close()


@pytest.fixture
def env_with_secrets() -> dict[str, Any]:
    return {
        "env": [
            {"name": "HF_TOKEN", "value": "hush-hush-42"},
            {"name": "db_password", "value": "x"},
            {"name": "PLAIN", "value": "seen"},
        ]
    }
