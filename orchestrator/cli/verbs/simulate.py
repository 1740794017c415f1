"""Say beforehand what a job would cost under each capacity policy, on recorded spot markets; nothing is started.

A trace is a file of the public spot-traces archive, or a folder of them. Every policy runs the same jobs: starts spread over the
trace, each with the deadlines asked for. Costs stand beside the best schedule that anyone could have had who knew the market
beforehand. With --prices, a file of several zones on one clock with their prices: the job may move between them.
Spot may be used while the trace offers it; what is held is paid for by the second; each start or move pays the restart
overhead, which does no work. See docs/simulation.md.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from orchestrator.cli.arguments import Parser, add_output, count_from_one, positive_seconds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orchestrator.cli.context import Context
    from orchestrator.simulation.study import Result


def add_arguments(parser: Parser) -> None:
    parser.add_argument("--trace", nargs="+", default=[], metavar="PATH", help="trace files, or folders of them")
    parser.add_argument(
        "--compute", type=positive_seconds, required=True, metavar="TIME", help="work of the whole gang"
    )
    parser.add_argument(
        "--deadline-ratio", type=_ratios, default=(1.1, 1.25, 1.5, 2.0), metavar="R,...",
        help="deadlines, as multiples of the compute (default 1.1,1.25,1.5,2)",
    )  # fmt: skip
    parser.add_argument(
        "--restart-overhead", type=_duration, default=360.0, metavar="TIME", help="paid and without work (default 6m)"
    )
    parser.add_argument(
        "--spot-price-ratio", type=_share, default=None, metavar="X",
        help="spot price over on-demand price (default 0.3333)",
    )  # fmt: skip
    parser.add_argument("--prices", metavar="FILE", help="several zones on one clock with their prices")
    parser.add_argument("--zones", type=_words, default=None, metavar="ZONE,...", help="only these zones of the file")
    parser.add_argument(
        "--workers", type=_workers, default=None, metavar="N|MIN:MAX",
        help="size of the gang; MIN:MAX is elastic (default: the most that the trace has)",
    )  # fmt: skip
    parser.add_argument(
        "--checkpoint-interval",
        type=positive_seconds,
        default=None,
        metavar="TIME",
        help="work between two checkpoints",
    )
    parser.add_argument(
        "--no-notice", action="store_true", help="a preemption loses the work since the last checkpoint"
    )
    parser.add_argument("--starts", type=count_from_one, default=24, metavar="N", help="jobs a deadline (default 24)")
    parser.add_argument("--policy", type=_words, default=None, metavar="NAME,...", help="policies (default: all)")
    parser.add_argument(
        "--overhead-spread", type=_from_zero, default=0.0, metavar="SIGMA",
        help="restarts vary: deviation of the logarithm of their length, cut at 4 times the mean (default 0)",
    )  # fmt: skip
    parser.add_argument(
        "--stock-outs", type=_from_zero, default=0.0, metavar="N",
        help="half hours a day in which no more on-demand machines are to be had (default 0)",
    )  # fmt: skip
    parser.add_argument(
        "--work-believed", type=_share, default=1.0, metavar="X",
        help="what the policy takes the work to be until half of it is done, over what it is (default 1)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of what is drawn by chance (default 0)")
    parser.add_argument("--plot", metavar="FILE", help="draw the first job under each policy (.png or .svg)")
    add_output(parser, ("table", "json", "yaml", "jsonl"))


def _words(text: str) -> tuple[str, ...]:
    found = tuple(word.strip() for word in text.split(",") if word.strip())
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} names nothing")
    return found


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def _ratios(text: str) -> tuple[float, ...]:
    ratios = tuple(_number(word) for word in _words(text))
    for ratio in ratios:
        if not 1 <= ratio < 1000:
            raise argparse.ArgumentTypeError(
                f"{ratio:g} is no deadline ratio: the deadline would be before the work is done"
            )
    return ratios


def _share(text: str) -> float:
    value = _number(text)
    if not 0 < value < 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a price ratio above 0")
    return value


def _from_zero(text: str) -> float:
    value = _number(text)
    if not 0 <= value < 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 up")
    return value


def _duration(text: str) -> float:
    return 0.0 if text in ("0", "0s") else positive_seconds(text)


def _workers(text: str) -> tuple[int, int]:
    least, _, most = text.partition(":")
    found = count_from_one(least), count_from_one(most or least)
    if found[0] > found[1]:
        raise argparse.ArgumentTypeError(f"{text!r}: the least is more than the most")
    return found


def run(args: argparse.Namespace, context: Context) -> int:
    from orchestrator.cli.output import emit

    if args.plot:
        from pathlib import Path

        from orchestrator.cli.market_picture import check_form

        check_form(Path(args.plot))
    try:
        results = _results(args, context)
        if args.plot:
            _draw(args, context, results)
    except ModuleNotFoundError as error:
        from orchestrator.domain.errors import UsageError

        raise UsageError(f"a simulation needs {error.name}", hint="pip install 'orchestrate[simulate]'") from error
    documents = [] if args.output == "table" else [result.to_document() for result in results]
    emit(
        context,
        args.output,
        documents,
        whole={"schema": 1, "runs": documents},
        as_table=lambda: _table(results),
        names=lambda document: str(document["trace"]),
    )
    return 0


def _results(args: argparse.Namespace, context: Context) -> list[Result]:
    from contextlib import suppress
    from dataclasses import replace
    from pathlib import Path

    from orchestrator.domain.errors import UsageError
    from orchestrator.policy.capacity import POLICY_NAMES, capacity_policy
    from orchestrator.simulation.market import market
    from orchestrator.simulation.study import Terms, find, starts, study
    from orchestrator.simulation.traces import flags, read_series
    from orchestrator.simulation.trouble import Trouble

    policies = args.policy or POLICY_NAMES
    for name in policies:
        capacity_policy(name)
    places = [context.cwd / Path(path).expanduser() for path in args.trace]
    found, notes = find(places)
    if args.prices:
        file = context.cwd / Path(args.prices).expanduser()
        if any(place != file for place in places):
            raise UsageError(
                "--prices brings its own zones and clock, which other traces do not share", hint="leave --trace out"
            )
        found = [(file.name, read_series(file))]
    if not found:
        raise UsageError("there is nothing to simulate", hint="name a trace with --trace, or a file with --prices")
    for note in [*notes, *flags(found)]:
        context.say(note)
    markets = []
    for name, series in found:
        if args.zones is not None:
            series = series.only(args.zones)
        least, most = args.workers or (max(1, series.most),) * 2
        recorded = bool(args.prices) or (series.prices is not None and args.spot_price_ratio is None)
        ratio = 0.3333 if args.spot_price_ratio is None else args.spot_price_ratio
        markets.append(
            market(replace(series, name=name), least, most, spot_price_ratio=ratio, recorded_prices=recorded)
        )
    interval = args.checkpoint_interval
    terms = Terms(
        round(args.compute * 1e9),
        args.deadline_ratio,
        round(args.restart_overhead * 1e9),
        args.starts,
        tuple(policies),
        not args.no_notice,
        None if interval is None else round(interval * 1e9),
        trouble=Trouble(args.seed, args.overhead_spread, args.stock_outs, work_believed=args.work_believed),
    )
    fit = []
    for each in markets:
        try:
            for ratio in terms.ratios:
                starts(each, terms, ratio)
            fit.append(each)
        except UsageError as error:
            if len(markets) == 1:
                raise
            context.say(f"{error.what}: left out")
    if not fit:
        raise UsageError("no trace is long enough", hint="lower --compute or --deadline-ratio")
    home = context.settings.home_path
    with suppress(OSError):  # without a home, bounds are not kept
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
    return list(study(fit, terms, home / "cache" / "bounds"))


def _table(results: Sequence[Result]) -> str:
    from orchestrator.cli.output import table
    from orchestrator.simulation.study import summary

    def shown(value: Any) -> str:
        return "none" if value is None else f"{value:.3f}"

    bound = "OPTIMUM" if results[0].market.rigid else "FLUID BOUND"
    headings = (
        "POLICY", "DEADLINE", "JOBS", "COST / ON-DEMAND", "WORST", f"COST / {bound}", "P99", "MISSES", "PREEMPTIONS",
    )  # fmt: skip
    rows = [
        (
            str(row["policy"]),
            f"{row['ratio']:g} x",
            str(row["jobs"]),
            shown(row["on_demand"]),
            shown(row["worst_on_demand"]),
            shown(row["optimum"]),
            shown(row["p99"]),
            str(row["misses"]),
            f"{row['preemptions']:.1f}",
        )
        for row in summary(results)
    ]
    return table(headings, rows, right=headings[1:])


def _draw(args: argparse.Namespace, context: Context, results: Sequence[Result]) -> None:
    from pathlib import Path

    from orchestrator.cli.market_picture import draw

    path = context.cwd / Path(args.plot).expanduser()
    first = results[0]
    shown = [
        each
        for each in results
        if (each.market, each.ratio, each.run.start_ns) == (first.market, first.ratio, first.run.start_ns)
    ]
    draw(shown, path)
    context.say(f"drawn: {path}")
