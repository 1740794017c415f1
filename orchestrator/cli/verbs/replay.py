"""Run a job on this machine while its workers come and go as a recorded spot market says; draw what happened.

The trace is a file of the public spot-traces archive ({"metadata": {"gap_seconds": 300}, "data": [4, 4, 3, ...]}); trace time
runs --speed times as fast as real time. Controller, ledger, engine and training are the real ones; each machine of the
market is an agent with its workers in processes of their own. At the end: timeline.svg, report.json and the job's folder
in --out.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.cli.arguments import Parser, add_namespace, add_output, positive_seconds
from orchestrator.cli.verbs.validate import add_set

if TYPE_CHECKING:
    from orchestrator.cli.context import Context
    from orchestrator.controller.replay import Replayed


def add_arguments(parser: Parser) -> None:
    parser.add_argument("trace", metavar="TRACE", help="trace of a spot market (JSON)")
    parser.add_argument("file", metavar="FILE", help="job file (YAML or JSON)")
    add_set(parser)
    parser.add_argument(
        "--speed", type=_speed, default=72.0, metavar="N", help="trace seconds in one real second (default 72)"
    )
    parser.add_argument(
        "--start", type=positive_seconds, default=0.0, metavar="TIME", help="where in the trace to begin"
    )
    parser.add_argument(
        "--length", type=positive_seconds, default=None, metavar="TIME", help="how much of it (default: to its end)"
    )
    parser.add_argument(
        "--notice",
        type=_notice,
        default=120.0,
        metavar="TIME",
        help="notice before a machine goes, in trace time; 0: none",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="which machine goes (default 0)")
    parser.add_argument(
        "--out", default="replay", metavar="FOLDER", help="where to write (default replay; must be new)"
    )
    add_namespace(parser)
    add_output(parser, ("table", "json", "yaml"))


def _speed(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def _notice(text: str) -> float:
    return 0.0 if text in ("0", "0s") else positive_seconds(text)


def run(args: argparse.Namespace, context: Context) -> int:
    from orchestrator.cli.jobfile import read_for_submission
    from orchestrator.domain.errors import Conflict, ExitCode, UsageError
    from orchestrator.simulation import read_trace

    _, document = read_for_submission(context, args.file, args.overrides, name=None, namespace=args.namespace)
    trace = read_trace(context.cwd / args.trace)
    trace = trace.window(args.start, trace.seconds - args.start if args.length is None else args.length)
    folder = (context.cwd / Path(args.out).expanduser()).resolve()
    if folder.exists() and any(folder.iterdir()):
        raise Conflict(f"{folder} is not empty", hint="name a new folder with --out")
    try:
        from orchestrator.cli.timeline import timeline, transitions
        from orchestrator.controller.replay import Replay, play
    except ModuleNotFoundError as error:
        raise UsageError(f"a replay needs {error.name}", hint="pip install 'orchestrate[train]'") from error
    folder.mkdir(parents=True, exist_ok=True)
    context.say(
        f"{trace.name}: {trace.seconds / 3600:.1f} h in {trace.seconds / args.speed / 60:.1f} min, up to {trace.most} machines, "
        f"{trace.joins} come and {trace.losses} go"
    )
    replay = Replay(trace, args.speed, args.notice, args.seed)
    replayed = play(document, replay, folder, context.environ, context.clock, context.say)
    report = _report(replayed, [end - start for start, end, _ in transitions(replayed)], folder)
    (folder / "timeline.svg").write_text(timeline(replayed), encoding="utf-8")
    from orchestrator.cli.output import to_json, to_yaml

    (folder / "report.json").write_text(to_json(report), encoding="utf-8")
    if args.output == "table":
        context.write(_told(report))
    else:
        context.write(to_json(report) if args.output == "json" else to_yaml(report))
    return int(ExitCode.OK if report["phase"] in ("Succeeded", "Suspended") else ExitCode.JOB_FAILED)


def _report(replayed: Replayed, dead: list[float], folder: Path) -> dict[str, Any]:
    from orchestrator.accounting import Category

    record = replayed.record
    share = replayed.useful_share
    return {
        "trace": replayed.replay.trace.name,
        "hours": replayed.replay.trace.seconds / 3600,
        "speed": replayed.replay.speed,
        "phase": str(record.state.phase),
        "message": record.state.message,
        "steps": record.state.step,
        "stepsRedone": record.progress.get("steps_redone", 0),
        "attempts": record.state.attempt,
        "seconds": replayed.seconds,
        "machines": len(replayed.machines),
        "joins": replayed.joins,
        "losses": replayed.losses,
        "transitions": len(dead),
        "secondsDead": {"total": sum(dead), "median": sorted(dead)[len(dead) // 2] if dead else None},
        "deliveredMachineSeconds": replayed.delivered_seconds,
        "machineSeconds": {str(category): replayed.seconds_of(category) for category in Category},
        "usefulShare": share,
        "timeline": str(folder / "timeline.svg"),
    }


def _told(report: dict[str, Any]) -> str:
    share = report["usefulShare"]
    spent = [(name, seconds) for name, seconds in report["machineSeconds"].items() if seconds > 0]
    lines = [
        f"{report['phase']}: {report['steps']:,} steps in {report['seconds']:.0f} s, {report['stepsRedone']} redone",
        f"{report['machines']} machines, {report['joins']} came later, {report['losses']} taken away, "
        f"{report['transitions']} transitions, {report['secondsDead']['total']:.1f} s without a step",
        "Useful "
        + ("unknown" if share is None else f"{100 * share:.1f} %")
        + f" of the warm machines' time; {report['deliveredMachineSeconds']:.0f} machine-seconds delivered:",
        *(f"  {name:<18} {seconds:>10.1f} s" for name, seconds in spent),
        f"Timeline: {report['timeline']}",
    ]
    return "\n".join(lines) + "\n"
