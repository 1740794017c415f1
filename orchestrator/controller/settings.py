"""Settings of the command line and the controller, each documented where it is declared.

Precedence: command-line flag, environment variable, `./.orchestrate.yaml`, `$ORCHESTRATE_HOME/config.yaml`, default.
`orchestrate config explain` prints every value with the place it came from. This is the only module that names the
project's environment variables; it reads them from the mapping that it is given.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from orchestrator.domain.errors import InvalidSpec, Problem, UsageError

CONFIG_FILE = ".orchestrate.yaml"
ENGINES = ("ray-train", "native", "fake")
STANDBYS = ("warm", "none")


def setting(doc: str, default: Any, variable: str) -> Any:
    return field(default=default, metadata={"doc": doc, "variable": variable})


@dataclass(frozen=True)
class Settings:
    """Values in force. `origins` tells, by name, where each came from."""

    home: str = setting("Folder of the journal, logs, checkpoints and the token.", "~/.orchestrate", "ORCHESTRATE_HOME")
    url: str = setting(
        "Address of a controller that runs elsewhere; empty: the one of this machine.", "", "ORCHESTRATE_URL"
    )
    token: str = setting("Bearer token; empty: the one in the home folder.", "", "ORCHESTRATE_TOKEN")
    host: str = setting("Address that the controller listens on.", "127.0.0.1", "ORCHESTRATE_HOST")
    port: int = setting("Port of the REST API and /metrics.", 8470, "ORCHESTRATE_PORT")
    engine: str = setting(
        "What runs the workers of a gang of fixed size: `ray-train`, or `native`, which runs all elastic jobs; "
        "`fake` trains nothing.",
        "ray-train",
        "ORCHESTRATE_ENGINE",
    )
    standbys: str = setting(
        "`warm`: in an elastic job a process stands by beside each that trains; `none`: none does, and processes go on from "
        "one set of workers to the next where they can.",
        "warm",
        "ORCHESTRATE_STANDBYS",
    )
    journal: str = setting("URL of a Postgres database; empty: SQLite in the home folder.", "", "ORCHESTRATE_JOURNAL")
    prices: str = setting("Price file; empty: the example that ships with orchestrate.", "", "ORCHESTRATE_PRICES")
    cpus: int = setting("CPUs that jobs may use on this machine; 0: all of them.", 0, "ORCHESTRATE_CPUS")
    idle_minutes: int = setting(
        "Minutes without jobs or requests after which an automatically started Ray stops; 0: never.",
        15,
        "ORCHESTRATE_IDLE_MINUTES",
    )
    namespace: str = setting("Namespace of jobs that name none.", "default", "ORCHESTRATE_NAMESPACE")
    origins: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def home_path(self) -> Path:
        return Path(os.path.expanduser(self.home)).absolute()


def documented() -> list[tuple[str, str, str, Any]]:
    """(name, environment variable, sentence, default) of every setting, in the order of declaration."""
    return [(f.name, f.metadata["variable"], f.metadata["doc"], f.default) for f in fields(Settings) if f.metadata]


def resolve(environ: Mapping[str, str], cwd: Path, flags: Mapping[str, Any]) -> Settings:
    """Settings in force. Raises `InvalidSpec` for a wrong config file and `UsageError` for a wrong variable or flag."""
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    kinds = {name: type(default) for name, _, _, default in documented()}

    def take(name: str, value: Any, origin: str) -> None:
        if name in values:
            return
        if kinds[name] is int and not isinstance(value, int):
            try:
                value = int(value)
            except (TypeError, ValueError):
                raise UsageError(
                    f"{origin}: {value!r} is not a whole number", hint=f"{name} counts something"
                ) from None
        if kinds[name] is str and not isinstance(value, str):
            raise UsageError(f"{origin}: {value!r} is not text", hint=f"put {name} in quotes")
        values[name] = value
        origins[name] = origin

    for name, value in flags.items():
        if value is not None:
            take(name, value, f"flag --{name.replace('_', '-')}")
    for name, variable, _, _ in documented():
        if environ.get(variable):
            take(name, environ[variable], f"environment variable {variable}")
    for file in (cwd / CONFIG_FILE,):
        _take_file(file, take, kinds)
    home = Settings(home=values.get("home", "~/.orchestrate")).home_path
    _take_file(home / "config.yaml", take, kinds)
    for name, _, _, default in documented():
        take(name, default, "default")
    if values["engine"] not in ENGINES:
        raise UsageError(f"{origins['engine']}: {values['engine']!r} is no engine", hint=f"write {_or(ENGINES)}")
    if values["standbys"] not in STANDBYS:
        hint = "write warm or none"
        raise UsageError(f"{origins['standbys']}: {values['standbys']!r} says nothing of standbys", hint=hint)
    if not 0 <= values["port"] <= 65_535:
        raise UsageError(f"{origins['port']}: {values['port']} is no port", hint="ports go from 1 to 65535")
    return Settings(**values, origins=origins)


def _or(words: tuple[str, ...]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"


def _take_file(file: Path, take: Any, kinds: Mapping[str, type]) -> None:
    try:
        text = file.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: cannot be read ({error})", hint="mend or remove the file") from error
    import yaml

    try:
        document = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise UsageError(f"{file}: is not valid YAML ({error})", hint="mend or remove the file") from error
    if not isinstance(document, dict):
        raise UsageError(f"{file}: is not a mapping of settings", hint="see `orchestrate config explain`")
    unknown = sorted(str(key) for key in document if key not in kinds)
    if unknown:
        known = ", ".join(kinds)
        raise InvalidSpec([Problem(key, "is not a setting", f"the settings are {known}", str(file)) for key in unknown])
    for name, value in document.items():
        take(name, value, str(file))
