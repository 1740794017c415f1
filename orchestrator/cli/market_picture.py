"""The picture of simulated jobs: what the market offered, what each policy held, the work, the money, over time.

Drawn by matplotlib, which `pip install 'orchestrate[simulate]'` brings. The form follows from the file's name: .png, .svg, .pdf.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from orchestrator.domain.errors import UsageError
from orchestrator.domain.offerings import CapacityType
from orchestrator.simulation.market import HOUR_NS, Market
from orchestrator.simulation.study import Result

SPOT, ON_DEMAND, OFFERED = "#0072b2", "#d55e00", "#b8b8b8"
LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")


def check_form(path: Path) -> None:
    """Raises UsageError for a name that is not that of a picture."""
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise UsageError(f"{path.name} is no picture", hint="a picture ends in .png, .svg or .pdf")


def draw(results: Sequence[Result], path: Path) -> None:
    """One job (the same market, start and deadline) under several policies."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    market, start_ns = results[0].market, results[0].run.start_ns
    deadline = results[0].job.deadline_ns / HOUR_NS
    figure = Figure(figsize=(12, 6.5 + 0.35 * len(results)), layout="constrained")
    FigureCanvasAgg(figure)
    offered, held, work, money = figure.subplots(
        4, 1, sharex=True, height_ratios=[1, 0.4 + 0.4 * len(results), 1.6, 1.6]
    )
    title = f"{market.name}, start {start_ns / HOUR_NS:.1f} h, deadline {results[0].ratio:g} x {results[0].job.work_ns / HOUR_NS:g} h"
    figure.suptitle(title)
    for zone, (times, counts) in zip(market.zones, _offers(market, start_ns, deadline), strict=True):
        offered.step(times, counts, where="post", label=zone)
    offered.set_ylabel("workers offered")
    if len(market.zones) > 1:
        offered.legend(fontsize="small", ncols=3)
    for row, result in enumerate(results):
        for kind, colour in ((CapacityType.SPOT, SPOT), (CapacityType.ON_DEMAND, ON_DEMAND)):
            bars = [
                ((each.start_ns - start_ns) / HOUR_NS, (each.end_ns - each.start_ns) / HOUR_NS)
                for each in result.run.segments
                if each.capacity_type is kind
            ]
            held.broken_barh(bars, (row - 0.35, 0.7), facecolors=colour, label=str(kind) if row == 0 else None)
        times, paid, done = _lines(result)
        colour = LINES[row % len(LINES)]
        work.plot(times, done, color=colour, label=result.policy)
        money.plot(times, paid, color=colour, label=result.policy)
    held.set_yticks(range(len(results)), [result.policy for result in results])
    held.invert_yaxis()
    held.set_ylabel("held")
    held.legend(fontsize="small", loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    work.plot([0, deadline], [0, results[0].job.work_ns / HOUR_NS], color=OFFERED, linestyle=":", label="even progress")
    work.set_ylabel("work, hours")
    work.legend(fontsize="small")
    money.set_ylabel("on-demand-hours paid")
    if (bound := results[0].bound) is not None:
        money.axhline(bound / market.on_demand, color=OFFERED, linestyle="--", label="optimum")
    money.legend(fontsize="small")
    money.set_xlabel("hours since the start")
    for axes in (offered, held, work, money):
        axes.axvline(deadline, color="black", linewidth=0.8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _offers(market: Market, start_ns: int, hours: float) -> list[tuple[list[float], list[int]]]:
    counts, _ = market.at(start_ns)
    lines = [([0.0], [count]) for count in counts]
    for change in market.changes[market.first_after(start_ns) :]:
        at = (change.at_ns - start_ns) / HOUR_NS
        if at >= hours:
            break
        lines[change.zone][0].append(at)
        lines[change.zone][1].append(change.workers)
    for times, values in lines:
        times.append(hours)
        values.append(values[-1])
    return lines


def _lines(result: Result) -> tuple[list[float], list[float], list[float]]:
    """Hours since the start, on-demand-hours paid, hours of work done: at the ends of segments. Work that a preemption destroyed
    is not shown; a change of price alone pays no overhead."""
    market, run = result.market, result.run
    instants = sorted({run.start_ns, *(s.start_ns for s in run.segments), *(s.end_ns for s in run.segments)})
    changed = [
        {(s.zone, s.capacity_type, s.workers) for s in run.segments if s.start_ns <= at < s.end_ns} for at in instants
    ]
    points = {*instants}
    ready_at, ready = {}, 0
    for place, at in enumerate(instants):
        if changed[place] and (place == 0 or changed[place] != changed[place - 1]):
            ready = at + result.job.overhead_ns
            points.add(ready)
        ready_at[at] = ready
    times, paid, done = [], [], []
    money = work = 0.0
    now, held, ready = run.start_ns, changed[0], ready_at[run.start_ns]
    for at in sorted(point for point in points if point <= instants[-1]):
        price = sum(s.price_nanodollars_per_hour for s in run.segments if s.start_ns <= now < s.end_ns)
        money += price * (at - now) / HOUR_NS / market.on_demand
        workers = sum(workers for _, _, workers in held)
        if workers >= market.workers_min and now >= ready:
            work += workers * (at - now) / market.workers_max / HOUR_NS
        times.append((at - run.start_ns) / HOUR_NS)
        paid.append(money)
        done.append(min(work, result.job.work_ns / HOUR_NS))
        now = at
        if at in ready_at:
            held, ready = changed[instants.index(at)], ready_at[at]
    return times, paid, done
