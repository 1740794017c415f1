"""Show a job: phase, step, time left, loss, dollars. With -w until nothing more happens; Ctrl-C ends the watching only."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from orchestrator.cli.arguments import Parser, add_connection, add_job, add_output
from orchestrator.cli.output import emit, pairs
from orchestrator.cli.view import NOTHING, RESTING, JobView, duration, metrics_line, priced_as

if TYPE_CHECKING:
    from orchestrator.cli.context import Context


def add_arguments(parser: Parser) -> None:
    add_job(parser)
    parser.add_argument("-w", "--watch", action="store_true", help="follow the job until it has ended or is suspended")
    add_output(parser)
    add_connection(parser)


def run(args: argparse.Namespace, context: Context) -> int:
    namespace, name = context.job(args.job)
    client = context.client()
    resource = client.get(namespace, name)
    job = JobView(resource)
    if args.watch:
        from orchestrator.cli.attach import Follower, detach_notice, rests
        from orchestrator.cli.progress import Display

        context.when_interrupted = detach_notice(context, resource)
        job = Follower(context, client, resource, display=Display(context)).until(rests)
    if args.output == "wide":
        from orchestrator.cli.verbs.list import jobs_table

        context.write(jobs_table([job], context.clock.now_ns(), namespaces=True, wide=True))
        return 0
    emit(
        context,
        args.output,
        [job.resource],
        whole=job.resource,
        as_table=lambda: status_text(job, context.clock.now_ns()),
        names=context.short,
    )
    return 0


def _workers(job: JobView) -> str:
    """`3/4 ready (1 to 4, 1 draining), attempt 1, 2 restarts, 1 resize`."""
    status, words = job.status.get("workers") or {}, []
    if job.elastic:
        bounds = job.spec["workers"]
        words.append(f"{bounds['min']} to {bounds['max']}")
    if draining := int(status.get("draining") or 0):
        words.append(f"{draining} draining")
    ready = f"{job.workers}{'' if job.phase in RESTING else ' ready'}" + (f" ({', '.join(words)})" if words else "")
    parts = [ready, f"attempt {job.status.get('attempt') or 0}", f"{job.restarts} restarts"]
    if job.resizes:
        parts.append("1 resize" if job.resizes == 1 else f"{job.resizes} resizes")
    return ", ".join(parts)


def disruption_line(disruption: Mapping[str, Any]) -> str:
    """`WorkerLost after step 412: 4 to 3 workers, 0.8 s dead, 1 step redone`."""
    before, after = disruption["workersBefore"], disruption.get("workersAfter")
    dead, redone = disruption.get("secondsDead"), disruption.get("stepsRedone")
    parts = [f"{before} to {'?' if after is None else after} workers"]
    parts.append("not back yet" if dead is None else f"{dead:.1f} s dead" if dead < 60 else f"{duration(dead)} dead")
    if redone is not None:
        parts.append("1 step redone" if redone == 1 else f"{redone} steps redone")
    return f"{disruption['reason']} after step {disruption['step']:,}: {', '.join(parts)}"


def status_text(job: JobView, now_ns: int) -> str:
    """The job in a few lines."""
    rows = [("Job", job.full_name), ("Phase", f"{job.phase} ({job.reason})" if job.reason else job.phase)]
    if job.message:
        rows.append(("Message", job.message))
    if job.step is not None:
        percent = "" if job.percent is None else f" ({job.percent:.0f} %)"
        epoch = job.progress.get("epoch")
        rows.append(("Step", job.steps + percent + ("" if epoch is None else f", epoch {epoch:.2f}")))
    if job.loss != NOTHING:
        rows.append(("Loss", job.loss))
    rows += [(f"{split.capitalize() or 'Metrics'}", metrics_line(values)) for split, values in job.metrics().items()]
    if (speed := job.progress.get("samplesPerSecond")) is not None:
        rows.append(("Speed", f"{speed:,.1f} samples/s"))
    if job.eta != NOTHING:
        rows.append(("Time left", job.eta))
    rows.append(("Workers", _workers(job)))
    if job.disruptions:
        rows.append(("Disrupted", disruption_line(job.disruptions[-1])))
    if (step := job.checkpoint.get("step")) is not None:
        rows.append(("Checkpoint", f"step {step:,}, {job.checkpoint.get('uri', '')}"))
    if not job.ended and (cadence := (job.status.get("checkpoint") or {}).get("cadence")):
        rows.append(("Cadence", cadence["because"].partition(";")[0]))
    if job.cost:
        per_hour = job.cost.get("perHourUSD")
        from orchestrator.cli.view import dollars

        now = "" if job.ended or per_hour is None else f", now {dollars(per_hour)} an hour"
        rows.append(("Cost", f"{job.total_cost}{now}"))
        rows.append(("Prices", priced_as(job.cost)))
    seconds = job.seconds(now_ns)
    if seconds is not None:
        rows.append(("Took" if job.ended else "Age", duration(seconds)))
    return pairs(rows)
