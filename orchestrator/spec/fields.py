"""Walking the models: which fields there are, what each expects, and which name was probably meant."""

from __future__ import annotations

import re
import types
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from orchestrator.spec.document import Path
from orchestrator.spec.models import Part, TrainingJob

MEANT_BY_OTHERS = {
    "batchsize": "spec.training.globalBatchSize",
    "trainbatchsize": "spec.training.globalBatchSize",
    "perdevicetrainbatchsize": "spec.training.microBatchSize",
    "trainmicrobatchsizepergpu": "spec.training.microBatchSize",
    "numtrainepochs": "spec.training.epochs",
    "numepochs": "spec.training.epochs",
    "gradientaccumulationsteps": "spec.training.microBatchSize",
    "interval": "spec.checkpoint.every",
    "resources": "spec.workers",
    "count": "spec.workers.min",
    "steps": "spec.training.maxSteps",
    "totalsteps": "spec.training.maxSteps",
    "lr": "spec.training.learningRate",
    "lrscheduler": "spec.training.schedule",
    "lrschedulertype": "spec.training.schedule",
    "scheduler": "spec.training.schedule",
    "warmupsteps": "spec.training.warmup",
    "warmupratio": "spec.training.warmup",
    "maxgradnorm": "spec.training.maxGradientNorm",
    "gradientclipping": "spec.training.maxGradientNorm",
    "evalsteps": "spec.training.evalEvery",
    "savesteps": "spec.checkpoint.every",
    "savetotallimit": "spec.checkpoint.keep",
    "keeplast": "spec.checkpoint.keep",
    "retention": "spec.checkpoint.keep",
    "loadbestmodelatend": "spec.checkpoint.keepBest",
    "resumefrom": "spec.checkpoint.importFrom",
    "resumefromcheckpoint": "spec.checkpoint.importFrom",
    "numworkers": "spec.workers.min",
    "replicas": "spec.workers.min",
    "nproc": "spec.workers.min",
    "numgpus": "spec.workers.gpus",
    "numcpus": "spec.workers.cpus",
    "zerostage": "spec.deepspeed.stage",
    "environment": "spec.runtime.env",
    "envvars": "spec.runtime.env",
    "workdir": "spec.runtime.workingDir",
    "modelname": "spec.model.source",
    "modelnameorpath": "spec.model.source",
    "pretrained": "spec.model.init",
    "dataset": "spec.data.source",
    "maxseqlength": "spec.data.maxLength",
    "backofflimit": "spec.failure.maxRestarts",
    "ttlsecondsafterfinished": "spec.ttlAfterFinished",
    "activedeadlineseconds": "spec.capacity.deadline",
    "spot": "spec.capacity.mode",
    "usespot": "spec.capacity.mode",
}
"""What other tools call our fields (lower case, letters and digits only)."""


def squeezed(name: str) -> str:
    """A name without case and punctuation: `global_batch-size` and `globalBatchSize` are one."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def alias_of(name: str, field: FieldInfo) -> str:
    return field.alias or name


@cache
def fields_of(model: type[Part]) -> dict[str, FieldInfo]:
    """Fields of a model by the names that a user writes, in the order of the document."""
    return {alias_of(name, field): field for name, field in model.model_fields.items()}


def bare(annotation: Any) -> Any:
    """An annotation without `Annotated` and `| None`."""
    while True:
        origin = get_origin(annotation)
        if origin is Annotated:
            annotation = get_args(annotation)[0]
        elif origin in (Union, types.UnionType):
            rest = [item for item in get_args(annotation) if item is not type(None)]
            if len(rest) != 1:
                return annotation
            annotation = rest[0]
        else:
            return annotation


def model_in(annotation: Any) -> type[Part] | None:
    """The model that an annotation holds, itself or as the items of a list."""
    annotation = bare(annotation)
    if get_origin(annotation) is list:
        annotation = bare(get_args(annotation)[0])
    return annotation if isinstance(annotation, type) and issubclass(annotation, Part) else None


def choices_of(annotation: Any) -> tuple[Any, ...]:
    """The words of a closed set; empty when the field is not one."""
    annotation = bare(annotation)
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def model_at(path: Path) -> type[Part] | None:
    """The model whose fields stand directly below `path`; None where there is none."""
    model: type[Part] | None = TrainingJob
    for part in path:
        if isinstance(part, int):
            continue
        field = fields_of(model).get(part) if model is not None else None
        model = model_in(field.annotation) if field is not None else None
    return model


def field_at(path: Path) -> FieldInfo | None:
    """The field at `path`; None when the path names none, or something inside a free-form field."""
    names = [part for part in path if isinstance(part, str)]
    if not names:
        return None
    owner = model_at(tuple(names[:-1]))
    return fields_of(owner).get(names[-1]) if owner is not None else None


@cache
def all_paths() -> tuple[Path, ...]:
    """Every field of the document, outermost first; items of lists carry no index."""
    return tuple(path for path, _ in _walk(TrainingJob, ()))


def walk() -> Iterator[tuple[Path, FieldInfo]]:
    """Every field of the document with its path, in the order of the document."""
    return _walk(TrainingJob, ())


def _walk(model: type[Part], prefix: Path) -> Iterator[tuple[Path, FieldInfo]]:
    for name, field in fields_of(model).items():
        yield (*prefix, name), field
        if (inner := model_in(field.annotation)) is not None:
            yield from _walk(inner, (*prefix, name))


def nearest(wrong: str, right: Sequence[str], *, cutoff: float = 0.7) -> str | None:
    """The name of `right` that `wrong` was probably meant to be; None when nothing is near.

    `cutoff` is the smallest likeness, from 0 to 1, as difflib counts it.
    """
    from difflib import get_close_matches

    by_squeezed = {squeezed(name): name for name in right}
    key = squeezed(wrong)
    if key in by_squeezed:
        return by_squeezed[key]
    close = get_close_matches(key, list(by_squeezed), n=1, cutoff=cutoff)
    if close:
        return by_squeezed[close[0]]
    akin = [name for other, name in by_squeezed.items() if min(len(key), len(other)) >= 3 and _akin(key, other)]
    return akin[0] if len(akin) == 1 else None


def _akin(one: str, other: str) -> bool:
    """Whether one name begins with the other, or holds it as a word of some length."""
    short, long = sorted((one, other), key=len)
    return long.startswith(short) or (len(short) >= 4 and short in long)


def probable_home(name: str) -> Path | None:
    """Where in the document a misplaced or foreign name belongs; None when there is no one place."""
    key = squeezed(name)
    homes = [path for path in all_paths() if isinstance(path[-1], str) and squeezed(path[-1]) == key]
    shallow = [path for path in homes if len(path) == min(map(len, homes))]
    if len(shallow) == 1:
        return shallow[0]
    if key in MEANT_BY_OTHERS:
        return tuple(MEANT_BY_OTHERS[key].split("."))
    return None
