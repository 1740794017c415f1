"""Checks across fields: what no type can say.

Each check names the fields that it reads and runs only when none of them is wrong in itself, so that one mistake gives
one message. Checks are pure; files are looked for in `paths.py`.
"""

from __future__ import annotations

import codecs
import json
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from orchestrator.spec.deepspeed_keys import PRESETS, deepspeed_findings
from orchestrator.spec.document import Path, dotted
from orchestrator.spec.fields import nearest
from orchestrator.spec.models import Data, Model, TrainingJob
from orchestrator.spec.sizes import LARGEST_ELASTIC_GANG, allowed_sizes, batch_unit, divides, wanted_sizes
from orchestrator.spec.uris import scheme_of, uri_fault
from orchestrator.spec.validation import Finding, touches
from orchestrator.spec.values import shown

Check = Callable[[TrainingJob], Iterator[Finding]]
_CHECKS: list[tuple[tuple[Path, ...], Check]] = []

STORES = frozenset({"file", "s3", "s3a", "gs", "gcs", "abfs", "abfss", "az"})
"""Schemes of the stores that checkpoints can go to."""
OWNED_ENVIRONMENT = frozenset(
    {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NODE_RANK", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"}
)
"""Variables by which the ranks of a gang find each other; the engine sets them."""


def cross_check(job: TrainingJob, spoilt: Sequence[Path]) -> Iterator[Finding]:
    """Findings of every check that reads no spoilt path."""
    for inputs, run in _CHECKS:
        if not any(touches(path, spoilt) for path in inputs):
            yield from run(job)


def _check(*inputs: str) -> Callable[[Check], Check]:
    def register(run: Check) -> Check:
        _CHECKS.append((tuple(tuple(text.split(".")) for text in inputs), run))
        return run

    return register


@_check("spec.model", "spec.entrypoint")
def _a_model_or_an_entrypoint(job: TrainingJob) -> Iterator[Finding]:
    if job.spec.model is None and job.spec.entrypoint is None:
        yield Finding(("spec", "model"), "is required", "add model: with source and task, or an entrypoint of your own")


@_check("spec.budget", "spec.workers")
def _only_an_elastic_job_shrinks(job: TrainingJob) -> Iterator[Finding]:
    budget = job.spec.budget
    if budget is not None and budget.on_exceeded == "ShrinkToMin" and not job.spec.workers.elastic:
        hint = "set workers.min below workers.max, or take Suspend or Fail"
        yield Finding(("spec", "budget", "onExceeded"), "ShrinkToMin needs an elastic job", hint)


@_check("spec.data", "spec.entrypoint")
def _data_or_an_entrypoint(job: TrainingJob) -> Iterator[Finding]:
    if job.spec.data is None and job.spec.entrypoint is None:
        yield Finding(("spec", "data"), "is required", "add data: with a source, or an entrypoint of your own")


@_check("spec.training.maxSteps", "spec.training.epochs", "spec.entrypoint")
def _one_length(job: TrainingJob) -> Iterator[Finding]:
    training = job.spec.training
    if training.max_steps is not None and training.epochs is not None:
        what = f"maxSteps ({training.max_steps}) and epochs ({training.epochs}) are both given"
        yield Finding(("spec", "training", "maxSteps"), what, "keep one of them")
    elif training.max_steps is None and training.epochs is None and job.spec.entrypoint is None:
        yield Finding(("spec", "training"), "does not say how long to train", "add maxSteps: 100 or epochs: 1")


@_check("spec.workers.min", "spec.workers.max")
def _bounds_of_workers(job: TrainingJob) -> Iterator[Finding]:
    workers = job.spec.workers
    path = ("spec", "workers", "min")
    if workers.min > workers.max:
        yield Finding(path, f"{workers.min} exceeds spec.workers.max ({workers.max})", "lower it or raise max")
    elif workers.elastic and workers.max > LARGEST_ELASTIC_GANG:
        what = f"{workers.max:,} workers are more than a gang that changes its size can have ({LARGEST_ELASTIC_GANG:,})"
        yield Finding(("spec", "workers", "max"), what, "lower it, or write the same number into min")


@_check(
    "spec.workers.min",
    "spec.workers.max",
    "spec.workers.gpus",
    "spec.workers.allowedSizes",
    "spec.training.globalBatchSize",
    "spec.training.microBatchSize",
    "spec.entrypoint",
)
def _sizes_of_a_list(job: TrainingJob) -> Iterator[Finding]:
    spec, workers = job.spec, job.spec.workers
    if not isinstance(workers.allowed_sizes, list) or workers.min > workers.max:
        return
    seen: set[int] = set()
    for index, size in enumerate(workers.allowed_sizes):
        path = ("spec", "workers", "allowedSizes", index)
        if size in seen:
            yield Finding(path, f"{size} is given twice", "keep one of them")
        elif not workers.min <= size <= workers.max:
            what = f"{size} lies outside spec.workers.min ({workers.min}) and max ({workers.max})"
            yield Finding(path, what, "remove it, or change min or max")
        elif not divides(spec, size):
            ranks = _count(size * workers.ranks_per_worker, "rank")
            what = f"{_count(size, 'worker')} ({ranks}) {'does' if size == 1 else 'do'} not divide {_batch(job)}"
            near = _near(spec.training.global_batch_size, [batch_unit(spec, size)])
            yield Finding(path, what, f"remove it, or write a globalBatchSize of {near}")
        seen.add(size)


@_check("spec.training.globalBatchSize", "spec.training.microBatchSize", "spec.workers", "spec.entrypoint")
def _a_size_is_allowed(job: TrainingJob) -> Iterator[Finding]:
    """For jobs that may change their size, and for fixed gangs whose size is no power of two."""
    spec, workers, training = job.spec, job.spec.workers, job.spec.training
    too_large = workers.elastic and workers.max > LARGEST_ELASTIC_GANG
    if isinstance(workers.allowed_sizes, list) or workers.min > workers.max or too_large:
        return
    wanted = list(wanted_sizes(workers))
    if not wanted:
        what = f"there is no power of two from spec.workers.min ({workers.min}) to max ({workers.max})"
        yield Finding(("spec", "workers", "allowedSizes"), what, "change min or max, or write Auto")
    if not wanted or not workers.elastic or allowed_sizes(spec):
        return
    sizes = f"{wanted[0]} to {_count(wanted[-1], 'worker')}"
    micro, batch = training.micro_batch_size, training.global_batch_size
    freed = [size for size in wanted if batch % (size * workers.ranks_per_worker) == 0]
    if isinstance(micro, int) and freed:
        shares = [batch // (size * workers.ranks_per_worker) for size in freed]
        better = max(
            part for part in range(1, min(micro, max(shares), 10_000) + 1) if any(s % part == 0 for s in shares)
        )
        what = f"{micro} divides the share of a rank at none of the sizes from {sizes}"
        yield Finding(("spec", "training", "microBatchSize"), what, f"write {better}, or Auto")
        return
    what = f"{batch} divides at none of the sizes from {sizes}"
    if workers.ranks_per_worker > 1:
        what += f" of {workers.ranks_per_worker} ranks"
    near = _near(batch, [batch_unit(spec, size) for size in wanted])
    yield Finding(("spec", "training", "globalBatchSize"), what, f"write {near}, or allow other sizes")


def _batch(job: TrainingJob) -> str:
    training = job.spec.training
    micro = f" in micro-batches of {training.micro_batch_size}" if isinstance(training.micro_batch_size, int) else ""
    return f"the global batch of {training.global_batch_size}{micro}"


def _near(number: int, units: Sequence[int]) -> str:
    """The nearest numbers below and above that one of the units divides."""
    below = max((number // unit * unit for unit in units), default=0)
    above = min(-(-number // unit) * unit for unit in units)
    return f"{below} or {above}" if below else str(above)


@_check("spec.training.globalBatchSize", "spec.training.microBatchSize", "spec.workers", "spec.entrypoint")
def _batch_divides(job: TrainingJob) -> Iterator[Finding]:
    training, workers = job.spec.training, job.spec.workers
    if workers.min != workers.max or isinstance(workers.allowed_sizes, list) or job.spec.entrypoint is not None:
        return
    batch, ranks = training.global_batch_size, workers.world_size
    path = ("spec", "training", "globalBatchSize")
    gang = f"{_count(ranks, 'rank')} ({_count(workers.max, 'worker')} x {max(1, workers.gpus)})"
    if batch % ranks:
        yield Finding(path, f"{batch} does not divide among {gang}", f"write {_multiples(batch, ranks)}")
        return
    micro = training.micro_batch_size
    if isinstance(micro, int) and batch % (ranks * micro):
        inner = ("spec", "training", "microBatchSize")
        each = batch // ranks
        if micro > each:
            yield Finding(
                inner,
                f"{micro} exceeds the share of a rank ({batch} samples / {_count(ranks, 'rank')} = {each})",
                f"write {each} or less, or Auto",
            )
        else:
            what = f"{micro} does not divide the share of a rank ({batch} samples / {_count(ranks, 'rank')} = {each})"
            near = max(size for size in range(1, micro + 1) if each % size == 0)
            yield Finding(inner, what, f"write {near}, or Auto")


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def _multiples(number: int, of: int) -> str:
    below, above = number // of * of, (number // of + 1) * of
    return f"a multiple of {of}, such as {f'{below} or {above}' if below else above}"


@_check("spec.training.warmup", "spec.training.maxSteps")
def _warmup_ends(job: TrainingJob) -> Iterator[Finding]:
    training = job.spec.training
    if training.max_steps is not None and training.warmup >= 1 and training.warmup >= training.max_steps:
        what = f"{training.warmup} steps of warm-up leave nothing of spec.training.maxSteps ({training.max_steps})"
        yield Finding(("spec", "training", "warmup"), what, "lower it or raise maxSteps")


@_check("spec.training.earlyStopping", "spec.data", "spec.entrypoint")
def _early_stopping_has_a_validation_split(job: TrainingJob) -> Iterator[Finding]:
    data = job.spec.data
    if job.spec.training.early_stopping is None or data is None or job.spec.entrypoint is not None:
        return
    empty = data.validation is None if data.splits is None else data.splits.validation == 0
    if empty:
        hint = "add a validation split, or remove earlyStopping"
        yield Finding(("spec", "training", "earlyStopping"), "needs a validation split, and the data has none", hint)


@_check("spec.training.earlyStopping.metric", "spec.model.task")
def _metric_fits_the_task(job: TrainingJob) -> Iterator[Finding]:
    stopping, model = job.spec.training.early_stopping, job.spec.model
    if stopping is None or model is None:
        return
    fitting = {"text-classification": ("loss", "accuracy", "macro-f1"), "causal-lm": ("loss", "perplexity")}[model.task]
    if stopping.metric not in fitting:
        what = f"{stopping.metric} is not measured for {model.task}"
        yield Finding(("spec", "training", "earlyStopping", "metric"), what, f"write one of {', '.join(fitting)}")


@_check("spec.data.source", "spec.data.splits", "spec.data.train", "spec.data.validation", "spec.data.test")
def _one_source_or_files(job: TrainingJob) -> Iterator[Finding]:
    data = job.spec.data
    if data is None:
        return
    path = ("spec", "data")
    if data.source is None and data.train is None:
        if data.validation is None and data.test is None:
            yield Finding(path, "names no samples", "add source: with a uri, or train: with a uri")
        else:
            yield Finding(path, "has nothing to train on", "add train: with a uri")
    if data.source is not None:
        for name in ("train", "validation", "test"):
            if getattr(data, name) is not None:
                yield Finding(
                    (*path, name),
                    "is given beside spec.data.source",
                    "keep source with splits, or a file for each split",
                )
    elif data.splits is not None:
        yield Finding(
            (*path, "splits"), "divides nothing, for there is no spec.data.source", "name a source, or remove splits"
        )
    if data.source is not None and data.splits is not None:
        parts = (data.splits.train, data.splits.validation, data.splits.test)
        if not math.isclose(total := sum(parts), 1.0, abs_tol=1e-6):
            what = f"train {parts[0]:g} + validation {parts[1]:g} + test {parts[2]:g} = {total:g}, not 1"
            yield Finding((*path, "splits"), what, "change them so that they add up to 1")


@_check("spec.data.train.uri", "spec.data.validation.uri", "spec.data.test.uri")
def _files_differ(job: TrainingJob) -> Iterator[Finding]:
    if (data := job.spec.data) is None:
        return
    seen: dict[str, str] = {}
    for name in ("train", "validation", "test"):
        file = getattr(data, name)
        if file is None:
            continue
        if (first := seen.get(file.uri)) is not None:
            what = f"{shown(file.uri)} is also spec.data.{first}"
            yield Finding(
                ("spec", "data", name, "uri"),
                what,
                "name another file (measured on what was trained, figures mean nothing)",
            )
        else:
            seen[file.uri] = name


def _files(data: Data) -> Iterator[tuple[Path, Any]]:
    for name in ("source", "train", "validation", "test"):
        if (file := getattr(data, name)) is not None:
            yield ("spec", "data", name), file


@_check(
    "spec.model.task",
    "spec.data.source",
    "spec.data.train",
    "spec.data.validation",
    "spec.data.test",
    "spec.entrypoint",
)
def _labels_can_be_read(job: TrainingJob) -> Iterator[Finding]:
    model, data = job.spec.model, job.spec.data
    if model is None or data is None or job.spec.entrypoint is not None or model.task != "text-classification":
        return
    for path, file in _files(data):
        if file.format == "Text":
            hint = "use CSV or JSONL with a label column, or task causal-lm"
            yield Finding((*path, "format"), "Text has no labels, and text-classification needs them", hint)


@_check("spec.data.labels", "spec.model.task")
def _labels(job: TrainingJob) -> Iterator[Finding]:
    data, model = job.spec.data, job.spec.model
    if data is None or data.labels is None:
        return
    path = ("spec", "data", "labels")
    if model is not None and model.task == "causal-lm":
        yield Finding(path, "causal-lm has no labels", "remove it")
        return
    seen: dict[str, int] = {}
    for index, label in enumerate(data.labels):
        if label in seen:
            yield Finding((*path, index), f"{shown(label)} is given twice", "keep one of them")
        seen[label] = index
    if len(seen) < 2:
        yield Finding(
            path, f"there is only {len(seen)} label", "name at least two, or remove it to take those found in train"
        )


@_check("spec.data.columns")
def _columns_differ(job: TrainingJob) -> Iterator[Finding]:
    data = job.spec.data
    if data is not None and data.columns.text == data.columns.label:
        what = f"{shown(data.columns.label)} is also the column of the text"
        yield Finding(("spec", "data", "columns", "label"), what, "name the column of the labels")


@_check("spec.data.filter", "spec.data.source", "spec.data.train")
def _filters(job: TrainingJob) -> Iterator[Finding]:
    data = job.spec.data
    if data is None or not data.filter:
        return
    if any(file.format == "Text" for _, file in _files(data)):
        yield Finding(
            ("spec", "data", "filter"), "Text files have no columns to filter by", "remove it, or use CSV or JSONL"
        )
    seen: set[str] = set()
    for index, item in enumerate(data.filter):
        if item.column in seen:
            what = f"the column {shown(item.column)} is filtered twice"
            yield Finding(("spec", "data", "filter", index, "column"), what, "put all values into one filter")
        seen.add(item.column)


@_check("spec.data.cleaning.encoding")
def _encoding_is_known(job: TrainingJob) -> Iterator[Finding]:
    if job.spec.data is None:
        return
    encoding = job.spec.data.cleaning.encoding
    try:
        known = codecs.lookup(encoding)._is_text_encoding
    except LookupError:
        known = False
    if not known:
        path = ("spec", "data", "cleaning", "encoding")
        yield Finding(
            path, f"{shown(encoding)} is not a text encoding", "write one that Python knows, such as utf-8 or latin-1"
        )


@_check("spec.data.source.uri", "spec.data.train.uri", "spec.data.validation.uri", "spec.data.test.uri")
def _data_uris(job: TrainingJob) -> Iterator[Finding]:
    if job.spec.data is None:
        return
    for path, file in _files(job.spec.data):
        scheme = scheme_of(file.uri)
        if (fault := uri_fault(file.uri)) is not None:
            yield Finding((*path, "uri"), *fault)
        elif scheme not in (None, "file", "package"):
            what = f"reading from {scheme}:// is not available in this version"
            yield Finding((*path, "uri"), what, "write a path or package://python_package/path (planned: remote data)")


@_check("spec.model")
def _model_fits_itself(job: TrainingJob) -> Iterator[Finding]:
    if (model := job.spec.model) is None:
        return
    path = ("spec", "model")
    scheme = scheme_of(model.source)
    if scheme not in (None, "package"):
        what = f"{shown(model.source)} is not a source of models"
        yield Finding(
            (*path, "source"), what, "write a folder, a hub id such as name/model, or package://python_package/path"
        )
    elif (fault := uri_fault(model.source)) is not None:
        yield Finding((*path, "source"), *fault)
    if model.init == "Pretrained" and model.config:
        yield Finding((*path, "config"), "is only for init: Scratch", "remove it, or write init: Scratch")
    if model.revision is not None and not _is_hub_id(model):
        what = f"{shown(model.source)} has no revisions"
        yield Finding((*path, "revision"), what, "remove it; only a hub id has revisions")


def _is_hub_id(model: Model) -> bool:
    source = model.source
    return scheme_of(source) is None and not source.startswith((".", "/", "~")) and source.count("/") <= 1


@_check("spec.runtime.env")
def _environment(job: TrainingJob) -> Iterator[Finding]:
    seen: set[str] = set()
    for index, variable in enumerate(job.spec.runtime.env):
        path = ("spec", "runtime", "env", index)
        if variable.name in seen:
            yield Finding((*path, "name"), f"{shown(variable.name)} is given twice", "keep one of them")
        seen.add(variable.name)
        if variable.name in OWNED_ENVIRONMENT:
            yield Finding((*path, "name"), f"{variable.name} is set by orchestrate on every rank", "remove it")
        if variable.value is None and variable.value_from is None:
            yield Finding((*path, "value"), "is required", f'add value: "..." to {variable.name}')
        elif variable.value is not None and variable.value_from is not None:
            yield Finding(path, f"{variable.name} has both value and valueFrom", "keep one of them")


@_check("spec.runtime.workingDir")
def _working_dir_is_a_folder(job: TrainingJob) -> Iterator[Finding]:
    folder = job.spec.runtime.working_dir
    if folder is not None and scheme_of(folder) is not None:
        yield Finding(
            ("spec", "runtime", "workingDir"),
            f"{shown(folder)} is not a folder",
            "write a path relative to the job file",
        )


@_check("spec.checkpoint.uri")
def _checkpoints_have_a_store(job: TrainingJob) -> Iterator[Finding]:
    uri = job.spec.checkpoint.uri
    scheme = None if uri is None else scheme_of(uri)
    path = ("spec", "checkpoint", "uri")
    if scheme == "package":
        yield Finding(path, f"{shown(uri)} cannot be written to", "write a folder")
    elif scheme is not None and scheme not in STORES:
        hint = "write a folder, or an address with s3://, gs:// or abfs://"
        yield Finding(path, f"there is no store for {scheme}://", hint)


@_check("spec.checkpoint.importFrom", "spec.runtime.workingDir")
def _imports_are_local(job: TrainingJob) -> Iterator[Finding]:
    given = job.spec.checkpoint.import_from
    if given is None:
        return
    path = ("spec", "checkpoint", "importFrom")
    if job.spec.entrypoint is not None:
        yield Finding(path, "is read by the built-in trainer only", "load it in your function, with DeepSpeed itself")
    if scheme_of(given.uri) not in (None, "file"):
        yield Finding((*path, "uri"), f"{shown(given.uri)} is not a folder", "copy it to a disk that the workers mount")
    if given.tag is not None and (given.tag in (".", "..") or "/" in given.tag):
        yield Finding((*path, "tag"), f"{shown(given.tag)} is not a tag", "write the name of a folder inside uri")


@_check("spec.deepspeed.stage", "spec.deepspeed.offload")
def _offload_needs_a_stage(job: TrainingJob) -> Iterator[Finding]:
    deepspeed = job.spec.deepspeed
    if deepspeed.offload != "None" and deepspeed.stage == 0:
        what = f"{deepspeed.offload} needs a ZeRO stage of 1 to 3, and spec.deepspeed.stage is 0"
        yield Finding(("spec", "deepspeed", "offload"), what, "write stage: Auto or 1 to 3, or offload: None")


@_check("spec.deepspeed.config", "spec.deepspeed.stage", "spec.deepspeed.offload")
def _deepspeed_config(job: TrainingJob) -> Iterator[Finding]:
    deepspeed = job.spec.deepspeed
    config = deepspeed.config
    path = ("spec", "deepspeed", "config")
    if isinstance(config, dict):
        for inner, what, hint in deepspeed_findings(config):
            yield Finding((*path, *inner), what, hint)
        yield from _not_finite(config, path)
    elif config in PRESETS:
        if deepspeed.stage not in ("Auto", PRESETS[config]):
            what = (
                f"the preset {config} has ZeRO stage {PRESETS[config]}, and spec.deepspeed.stage is {deepspeed.stage}"
            )
            yield Finding(path, what, "say the stage once")
        elif deepspeed.offload != "None" and "offload" not in config:
            what = f"the preset {config} does not offload, and spec.deepspeed.offload is {deepspeed.offload}"
            yield Finding(path, what, "remove config, or offload")
    elif config is not None and "/" not in config and not config.endswith(".json"):
        near = nearest(config, list(PRESETS))
        hint = f"did you mean {near}?" if near else f"write one of {', '.join(PRESETS)}, or the path of a .json file"
        yield Finding(path, f"there is no preset {shown(config)}", hint)


@_check("spec.model.config")
def _model_config_is_json(job: TrainingJob) -> Iterator[Finding]:
    if job.spec.model is not None:
        yield from _not_finite(job.spec.model.config, ("spec", "model", "config"))


@_check("spec.entrypoint.args")
def _args_are_json(job: TrainingJob) -> Iterator[Finding]:
    if job.spec.entrypoint is not None:
        yield from _not_finite(job.spec.entrypoint.args, ("spec", "entrypoint", "args"))


def _not_finite(value: Any, path: Path) -> Iterator[Finding]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _not_finite(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _not_finite(item, (*path, index))
    elif isinstance(value, float) and not math.isfinite(value):
        yield Finding(path, f"{shown(value)} is not a finite number", "write a number")
    elif not isinstance(value, str | int | float | bool | None):
        yield Finding(
            path,
            f"{json.dumps(str(value))} in {dotted(path)} is not a JSON value",
            "write a text, number, list or mapping",
        )
