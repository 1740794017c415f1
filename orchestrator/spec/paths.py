"""Do the files that a job names exist? The part of validation that needs a disk, kept apart so that the rest is pure.

Packages are looked up without importing them. Hub ids and checkpoints are not looked for: a hub is a network, and a
folder of checkpoints is made when it is missing. A file that is there may still be unreadable on another machine.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from orchestrator.domain.errors import Problem
from orchestrator.spec.document import dotted
from orchestrator.spec.models import Model, TrainingJob
from orchestrator.spec.uris import package_uri, scheme_of


def check_paths(job: TrainingJob, base_dir: Path) -> list[Problem]:
    """Problems of the files and folders that `job` names; `base_dir` is the folder of the job file."""
    working_dir = base_dir / (job.spec.runtime.working_dir or ".")
    if not working_dir.is_dir():
        return [
            Problem(
                "spec.runtime.workingDir",
                f"there is no folder {working_dir}",
                "paths start at the folder of the job file",
            )
        ]
    return list(_problems(job, working_dir))


def resolve_uri(uri: str, working_dir: Path) -> Path | None:
    """The local path of a path, `file://` or `package://` address; None when the package is not installed or it is remote."""
    scheme = scheme_of(uri)
    if scheme is None:
        return working_dir / Path(uri).expanduser()
    if scheme == "file":
        return Path(uri[len("file://") :])
    inside = package_uri(uri)
    folder = None if inside is None else package_folder(inside.package)
    return None if folder is None or inside is None else folder / inside.path


def package_folder(package: str) -> Path | None:
    """The folder of an installed package, found without importing the package itself; None when there is none."""
    try:
        found = find_spec(package)
    except (ImportError, ValueError):
        return None
    if found is None or not found.submodule_search_locations:
        return None
    return Path(next(iter(found.submodule_search_locations)))


def _problems(job: TrainingJob, working_dir: Path) -> Iterator[Problem]:
    if job.spec.model is not None and job.spec.entrypoint is None:
        yield from _model(job.spec.model, working_dir)
    if job.spec.data is not None:
        for name in ("source", "train", "validation", "test"):
            if (file := getattr(job.spec.data, name)) is not None:
                yield from _file(file.uri, ("spec", "data", name, "uri"), working_dir)
    if (given := job.spec.checkpoint.import_from) is not None:
        yield from _imported(given.uri, given.tag, working_dir)
    config = job.spec.deepspeed.config
    if isinstance(config, str) and (config.endswith(".json") or "/" in config):
        yield from _json(working_dir / config)
    if job.spec.entrypoint is not None:
        yield from _module(job.spec.entrypoint.function, working_dir)


def _file(uri: str, path: tuple[str, ...], working_dir: Path) -> Iterator[Problem]:
    where = dotted(path)
    target = resolve_uri(uri, working_dir)
    if target is None:
        yield from _package_missing(uri, where)
    elif target.is_dir():
        yield Problem(where, f"{uri} is a folder", "name the file in it")
    elif not target.is_file():
        yield Problem(where, f"there is no file {target}", _near_file(target))
    elif target.stat().st_size == 0:
        yield Problem(where, f"{target} is empty", "name a file with samples")


def _package_missing(uri: str, where: str) -> Iterator[Problem]:
    inside = package_uri(uri)
    if inside is not None:
        what = f"the Python package {inside.package} is not installed here"
        yield Problem(where, what, f"install the distribution that holds {inside.package}, here and on the workers")


def _near_file(target: Path) -> str:
    if not target.parent.is_dir():
        return f"the folder {target.parent} does not exist either; paths start at spec.runtime.workingDir"
    from difflib import get_close_matches

    near = get_close_matches(target.name, sorted(item.name for item in target.parent.iterdir()), n=1)
    return f"did you mean {near[0]}?" if near else "paths start at spec.runtime.workingDir"


def _model(model: Model, working_dir: Path) -> Iterator[Problem]:
    where = "spec.model.source"
    if scheme_of(model.source) == "package":
        target = resolve_uri(model.source, working_dir)
        if target is None:
            yield from _package_missing(model.source, where)
            return
    elif (
        model.source.startswith((".", "/", "~")) or model.source.count("/") > 1 or (working_dir / model.source).exists()
    ):
        target = working_dir / Path(model.source).expanduser()
    else:
        return
    if not target.is_dir():
        yield Problem(where, f"there is no folder {target}", "name a folder that holds config.json")
    elif not (target / "config.json").is_file():
        yield Problem(where, f"{target} holds no config.json", "name a folder that a transformers model was saved to")


def _imported(uri: str, tag: str | None, working_dir: Path) -> Iterator[Problem]:
    where = "spec.checkpoint.importFrom"
    folder = resolve_uri(uri, working_dir)
    if folder is None or not folder.is_dir():
        yield Problem(f"{where}.uri", f"there is no folder {folder or uri}", "paths start at spec.runtime.workingDir")
    elif tag is not None and not (folder / tag).is_dir():
        tags = ", ".join(sorted({path.parent.name for path in folder.glob("*/*_model_states.pt")}))
        yield Problem(f"{where}.tag", f"{folder} has no tag {tag}", f"it has {tags}" if tags else "leave tag out")


def _json(target: Path) -> Iterator[Problem]:
    where = "spec.deepspeed.config"
    try:
        value = json.loads(target.read_text(encoding="utf-8"))
    except FileNotFoundError:
        yield Problem(where, f"there is no file {target}", _near_file(target))
    except OSError as error:
        yield Problem(where, f"{target} cannot be read ({error.strerror})", "name a JSON file")
    except ValueError as error:
        yield Problem(where, f"{target} is not JSON ({error})", "correct it")
    else:
        if not isinstance(value, dict):
            yield Problem(where, f"{target} holds no JSON object", "write { and the keys of DeepSpeed in it")
            return
        from orchestrator.spec.deepspeed_keys import deepspeed_findings

        for path, what, hint in deepspeed_findings(value):
            yield Problem(where, f"{target}: {dotted(path)} {what}", hint)


def _module(function: str, working_dir: Path) -> Iterator[Problem]:
    module = function.partition(":")[0]
    root = module.split(".")[0]
    here = [working_dir / f"{root}.py", working_dir / root]
    if any(candidate.exists() for candidate in here):
        inner = working_dir.joinpath(*module.split("."))
        if not inner.is_dir() and not inner.with_suffix(".py").is_file():
            yield Problem("spec.entrypoint.function", f"there is no module {module} in {working_dir}", "check its name")
        return
    try:
        installed = find_spec(root) is not None
    except (ImportError, ValueError):
        installed = False
    if not installed:
        what = f"there is no module {root} in {working_dir}, and none is installed"
        yield Problem("spec.entrypoint.function", what, "check its name and spec.runtime.workingDir")
