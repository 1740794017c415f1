"""List a job's checkpoints, verify them, save one now, write one in another program's form, or delete old ones."""

from __future__ import annotations

import argparse
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.cli.arguments import (
    Parser,
    add_connection,
    add_job,
    add_namespace,
    add_output,
    byte_size,
    count_from_one,
    positive_seconds,
    words,
)
from orchestrator.cli.output import emit, table
from orchestrator.cli.view import NOTHING, JobView, metrics_line
from orchestrator.domain.errors import ExitCode

if TYPE_CHECKING:
    from orchestrator.cli.context import Context
    from orchestrator.storage import Store
    from orchestrator.training.exporting import Exported, Source


def add_arguments(parser: Parser) -> None:
    verbs = words(parser, "what", "WHAT")
    listing = verbs.add_parser(
        "list", help="list checkpoints, newest first", description="List a job's checkpoints, newest first."
    )
    verifying = verbs.add_parser(
        "verify",
        help="read every checkpoint and compare its hashes",
        description="Read every checkpoint of a job and compare its hashes. Exit code 1 when one is not whole.",
    )
    for leaf in (listing, verifying):
        _add_target(leaf)
        add_output(leaf)
        add_connection(leaf)
    now = verbs.add_parser(
        "now",
        help="save one at the next step",
        description="Save a checkpoint at the next step and wait until it is durable.",
    )
    add_job(now)
    now.add_argument("--no-wait", action="store_true", help="return at once")
    now.add_argument(
        "--timeout", type=positive_seconds, default=300.0, metavar="TIME", help="longest wait (default 5m)"
    )
    add_connection(now)
    _add_export(verbs)
    _add_prune(verbs)


def _add_export(verbs: Any) -> None:
    export = verbs.add_parser(
        "export",
        help="write one as a model folder, for DeepSpeed or for torch",
        description="Write a checkpoint as a model folder that transformers loads (safetensors), as a folder that plain "
        "DeepSpeed loads at any world size and ZeRO stage, or as a distributed checkpoint of torch (dcp). A folder of "
        "DeepSpeed can be given as well.",
    )
    _add_target(export)
    export.add_argument("--to", required=True, metavar="FOLDER", help="folder to write; it must not be there yet")
    export.add_argument(
        "--step", default="latest", metavar="STEP", help="a step, best or latest (default latest); of DeepSpeed a tag"
    )
    export.add_argument(
        "--format", choices=("safetensors", "deepspeed", "dcp"), default="safetensors", help="default safetensors"
    )
    export.add_argument("--dtype", choices=("fp32", "bf16"), help="number format (default: that of the training)")
    export.add_argument("--shard-size", type=byte_size, metavar="SIZE", help="safetensors: largest file (default 5G)")
    export.add_argument(
        "--world-size", type=count_from_one, metavar="N", help="deepspeed: ranks that will load it (default 1)"
    )
    export.add_argument(
        "--stage", type=int, choices=(0, 1, 2, 3), help="deepspeed: ZeRO stage that will load it (default 2)"
    )
    export.add_argument("--force", action="store_true", help="replace an earlier export at that place")
    add_output(export)
    add_connection(export)


def _add_prune(verbs: Any) -> None:
    prune = verbs.add_parser(
        "prune",
        help="delete old checkpoints",
        description="Delete the checkpoints that nothing keeps, and list them. Never deleted: the newest one that is whole, "
        "refused ones, and anything that is not a checkpoint.",
    )
    _add_target(prune)
    prune.add_argument("--keep-last", type=count_from_one, required=True, metavar="N", help="keep the newest N of them")
    prune.add_argument(
        "--keep-best",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="keep the best one as well (default yes)",
    )
    prune.add_argument(
        "--keep-every", type=positive_seconds, metavar="TIME", help="keep one of each such period as well, such as 1d"
    )
    prune.add_argument("--dry-run", action="store_true", help="only say what would be deleted")
    add_output(prune)
    add_connection(prune)


def _add_target(parser: Parser) -> None:
    parser.add_argument(
        "job", metavar="JOB", help="name of the job, namespace/name, or the place of checkpoints (a path or a URI)"
    )
    add_namespace(parser)


def run(args: argparse.Namespace, context: Context) -> int:
    if args.what == "now":
        return _now(args, context)
    if args.what == "export":
        return _export(args, context)
    if args.what == "prune":
        return _prune(args, context)
    verify = args.what == "verify"
    items = _items(args.job, context, verify=verify)
    if not items and args.output in ("table", "wide"):
        context.say(f"{args.job} has no checkpoint yet.")
        return 0
    emit(
        context,
        args.output,
        items,
        whole={"items": items},
        as_table=lambda: checkpoints_table(items, wide=args.output == "wide"),
        names=lambda item: str(item["uri"]),
    )
    torn = [item for item in items if not item["whole"]]
    return int(ExitCode.PLATFORM) if verify and torn else 0


def checkpoints_table(items: list[dict[str, Any]], *, wide: bool) -> str:
    from orchestrator.domain.quantities import format_bytes

    headings = ["STEP", "WHOLE", "SIZE", "SAVED (UTC)", "BEST", "METRICS"]
    if wide:
        headings.append("URI")
    rows = []
    for item in items:
        size = item.get("bytes")
        row = [
            NOTHING if item.get("step") is None else f"{item['step']:,}",
            "yes" if item["whole"] else f"no: {item.get('why') or 'unknown'}",
            NOTHING if size is None else format_bytes(size),
            str(item.get("time") or NOTHING)[:19].replace("T", " "),
            "best" if item.get("best") else "",
            metrics_line(item.get("metrics") or {}),
        ]
        rows.append([*row, str(item.get("uri", ""))] if wide else row)
    return table(headings, rows, right=("STEP", "SIZE"))


def _place(text: str, context: Context) -> str | None:
    """The URI that a target means, when it is no job: an address, or a path that looks like one."""
    if "://" in text:
        return text
    if text in (".", "..") or text.startswith(("/", "./", "../", "~")):
        return str(context.cwd / Path(text).expanduser())
    return None


def _store(place: str) -> Store:
    """The checkpoints at a place. Raises NotFound for a folder that is not there."""
    from orchestrator.domain.errors import NotFound
    from orchestrator.storage import open_store

    scheme, separator, rest = place.partition("://")
    local = Path(rest if separator else place)
    if (not separator or scheme == "file") and not local.is_dir():
        raise NotFound(f"there is no folder {local}", hint="name a job, or the folder that holds its checkpoints")
    return open_store(place)


def _items(target: str, context: Context, *, verify: bool = False) -> list[dict[str, Any]]:
    """Checkpoints of a job, or at a place, newest first."""
    place = _place(target, context)
    if place is None:
        return context.client().checkpoints(*context.job(target), verify=verify)
    from orchestrator.controller.views import checkpoint_document

    store = _store(place)
    found = [store.verify(listed.uri) if verify and listed.whole else listed for listed in store.list()]
    return [checkpoint_document(listed) for listed in found]


def _prune(args: argparse.Namespace, context: Context) -> int:
    place = _place(args.job, context)
    every = args.keep_every
    if place is None:
        items = context.client().prune(
            *context.job(args.job),
            keep_last=args.keep_last,
            keep_best=args.keep_best,
            keep_every_seconds=None if every is None else max(1, round(every)),
            dry_run=args.dry_run,
        )
    else:
        from orchestrator.controller.views import checkpoint_document
        from orchestrator.storage import Retention

        retention = Retention(args.keep_last, args.keep_best, None if every is None else round(every * 1e9))
        store = _store(place)
        doomed = store.doomed(retention)
        if doomed and not args.dry_run:
            store.prune(retention)
        items = [checkpoint_document(listed) for listed in doomed]
    done = "would be deleted" if args.dry_run else "deleted"
    context.say(f"{len(items)} checkpoint{'' if len(items) == 1 else 's'} {done}.")
    if items or args.output not in ("table", "wide"):
        emit(
            context,
            args.output,
            items,
            whole={"items": items},
            as_table=lambda: checkpoints_table(items, wide=args.output == "wide"),
            names=lambda item: str(item["uri"]),
        )
    return 0


def _export(args: argparse.Namespace, context: Context) -> int:
    from orchestrator.domain.errors import UsageError

    flags = {
        "--shard-size": ("safetensors", args.shard_size),
        "--world-size": ("deepspeed", args.world_size),
        "--stage": ("deepspeed", args.stage),
    }
    for flag, (meant_for, value) in flags.items():
        if value is not None and args.format != meant_for:
            raise UsageError(f"{flag} means nothing for {args.format}", hint=f"remove it, or add --format {meant_for}")
    place = _place(args.job, context)
    if place is None:
        from orchestrator.domain.errors import NotFound

        items = context.client().checkpoints(*context.job(args.job))
        if not items:
            raise NotFound(f"{args.job} has no checkpoint yet", hint="`orchestrate checkpoint now` saves one")
        place = str(items[0]["uri"]).rpartition("/")[0]
    try:
        from orchestrator.training import exporting

        with closing(exporting.open_source(place, args.step)) as source:
            exported = _write(args, context, source)
    except ModuleNotFoundError as error:
        raise UsageError(f"an export needs {error.name}", hint="pip install 'orchestrate[train]'") from error
    for note in exported.notes:
        context.say(f"Note: {note}.")
    document = {
        "folder": str(exported.folder),
        "format": args.format,
        "step": source.step,
        "from": source.uri,
        "files": exported.files,
        "bytes": exported.bytes,
    }
    emit(
        context,
        args.output,
        [document],
        whole=document,
        as_table=lambda: _export_table(document),
        names=lambda item: str(item["folder"]),
    )
    return 0


def _write(args: argparse.Namespace, context: Context, source: Source) -> Exported:
    from orchestrator.training import exporting

    folder = context.cwd / Path(args.to).expanduser()
    dtype = None if args.dtype is None else exporting.DTYPES[args.dtype]
    if args.format == "deepspeed":
        stage = 2 if args.stage is None else args.stage
        return exporting.export_deepspeed(
            source, folder, world_size=args.world_size or 1, stage=stage, dtype=dtype, force=args.force
        )
    if args.format == "dcp":
        from orchestrator.training.distributed_checkpoint import export_distributed

        return export_distributed(source, folder, dtype=dtype, force=args.force)
    size = args.shard_size or exporting.SHARD_BYTES
    return exporting.export_model(source, folder, dtype=dtype, shard_bytes=size, force=args.force)


def _export_table(document: dict[str, Any]) -> str:
    from orchestrator.domain.quantities import format_bytes

    headings = ["STEP", "FORMAT", "FILES", "SIZE", "FOLDER"]
    row = [
        f"{document['step']:,}",
        document["format"],
        str(document["files"]),
        format_bytes(document["bytes"]),
        document["folder"],
    ]
    return table(headings, [row], right=("STEP", "FILES", "SIZE"))


def _now(args: argparse.Namespace, context: Context) -> int:
    namespace, name = context.job(args.job)
    client = context.client()
    before = JobView(client.get(namespace, name)).checkpoint.get("time")
    resource = client.request(namespace, name, "checkpoint")
    if args.no_wait:
        context.say(f"{namespace}/{name}: a checkpoint is asked for")
        return 0
    from orchestrator.cli.attach import Follower, outcome_code

    context.when_interrupted = f"Stopped waiting; the checkpoint of {args.job} is still asked for."

    def saved(job: JobView) -> bool:
        return job.ended or job.checkpoint.get("time") != before

    job = Follower(context, client, resource, display=None).until(saved, args.timeout)
    if job.checkpoint.get("time") == before:
        context.say(f"{job.full_name} has ended as {job.phase}; no checkpoint was saved.")
        return outcome_code(job) or int(ExitCode.CONFLICT)
    context.say(f"Step {job.checkpoint['step']:,} is durable.")
    context.print(str(job.checkpoint["uri"]))
    return 0
