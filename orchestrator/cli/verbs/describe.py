"""Show all that is known of a job: status, spec, story, checkpoints, cost."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from orchestrator.cli.arguments import Parser, add_connection, add_job
from orchestrator.cli.output import to_yaml
from orchestrator.cli.view import JobView

if TYPE_CHECKING:
    from orchestrator.cli.context import Context


def add_arguments(parser: Parser) -> None:
    add_job(parser)
    add_connection(parser)


def run(args: argparse.Namespace, context: Context) -> int:
    from orchestrator.cli.verbs.checkpoint import checkpoints_table
    from orchestrator.cli.verbs.cost import cost_text
    from orchestrator.cli.verbs.events import story_table
    from orchestrator.cli.verbs.status import disruption_line, status_text

    namespace, name = context.job(args.job)
    client = context.client()
    job = JobView(client.get(namespace, name))
    labels = ", ".join(f"{key}={value}" for key, value in (job.metadata.get("labels") or {}).items())
    context.write(status_text(job, context.clock.now_ns()))
    context.print(f"Uid:         {job.uid}")
    if labels:
        context.print(f"Labels:      {labels}")
    context.write("\nSpec\n" + _indented(to_yaml(dict(job.spec))))
    if job.disruptions:
        lines = "".join(f"{each['time']}  {disruption_line(each)}\n" for each in job.disruptions)
        context.write("\nDisruptions\n" + _indented(lines))
    context.write("\nStory\n" + _indented(story_table(client.events(namespace, name))))
    checkpoints = client.checkpoints(namespace, name)
    shown = checkpoints_table(checkpoints, wide=True) if checkpoints else "none yet\n"
    context.write("\nCheckpoints\n" + _indented(shown))
    context.write("\nCost\n" + _indented(cost_text(client.cost(namespace, name))))
    return 0


def _indented(text: str) -> str:
    return "".join(f"  {line}\n" for line in text.splitlines())
