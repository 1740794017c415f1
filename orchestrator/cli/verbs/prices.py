"""Show the prices in force: source, date, offers. `prices check FILE` checks a price file of your own.

Name your file in $ORCHESTRATE_PRICES. It looks like this:

  source: AWS price list, us-east-1
  date: 2026-11-01
  billed: true                # false: an example; nobody will bill these prices
  local: p3.2xlarge           # what one worker on this machine is priced as
  billing: {granularitySeconds: 1, minimumSeconds: 60}
  offers:
    - {instanceType: p3.2xlarge, zone: us-east-1a, gpus: 1, onDemandUSD: "3.06", spotUSD: "0.918"}

An offer may have a source and a date of its own. A price that is absent is unknown and stays unknown; zero is refused.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.cli.arguments import Parser, add_connection, add_output, words
from orchestrator.cli.output import emit, table

if TYPE_CHECKING:
    from orchestrator.cli.context import Context


def add_arguments(parser: Parser) -> None:
    add_output(parser, ("table", "json", "yaml", "jsonl", "name"))
    add_connection(parser)
    verbs = words(parser, "what", "check", required=False)
    check = verbs.add_parser(
        "check", help="check a price file", description="Say everything that is wrong with a price file."
    )
    check.add_argument("file", metavar="FILE", help="price file (YAML)")


def run(args: argparse.Namespace, context: Context) -> int:
    from orchestrator.platforms.prices import load_prices

    if args.what == "check":
        book = load_prices(Path(args.file))
        context.print(f"{args.file}: {len(book.offers)} offers of {book.source}, {book.as_of}; it is valid")
        return 0
    client = context.client_if_running()
    settings = context.settings
    document: Mapping[str, Any]
    if client is not None:
        document = client.prices()
    else:
        document = load_prices(Path(settings.prices).expanduser() if settings.prices else None).to_document()
    offers = list(document["offers"])
    emit(
        context,
        args.output,
        offers,
        whole=document,
        as_table=lambda: prices_text(document),
        names=lambda offer: str(offer["instanceType"]),
    )
    return 0


def prices_text(document: Mapping[str, Any]) -> str:
    example = "" if document.get("billed") else "; an example, nobody bills these prices"
    billing = document.get("billing") or {}
    lines = [f"{document['source']}, {document['date']}{example}"]
    if billing:
        lines.append(
            f"Billed by {billing.get('granularitySeconds', 1)} s, at least {billing.get('minimumSeconds', 0)} s a machine."
        )
    local = document.get("local")
    lines.append(
        f"A worker on this machine is priced as {local}." if local else "A worker on this machine has no price."
    )
    rows = [
        (
            str(offer["instanceType"]),
            str(offer.get("zone") or "unknown"),
            str(offer.get("gpus", 0)),
            _price(offer.get("onDemandUSD")),
            _price(offer.get("spotUSD")),
            str(offer.get("date") or document["date"]),
        )
        for offer in document["offers"]
    ]
    headings = ("INSTANCE TYPE", "ZONE", "GPUS", "ON-DEMAND $/H", "SPOT $/H", "OF")
    return "\n".join(lines) + "\n\n" + table(headings, rows, right=headings[2:5])


def _price(amount: str | None) -> str:
    return "unknown" if amount is None else amount
