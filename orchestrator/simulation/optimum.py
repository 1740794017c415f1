"""What the best schedule of a rigid job would have cost, had it known the whole market beforehand. Exact.

State: the instant, what is held, and the *slack used* (time since the start that did no work). Between two changes of the
market, holding a place leaves the slack as it is, idling adds to it, and a start adds one restart overhead; the value of a
state is the least cost. Slack comes in granules of the greatest common divisor of everything that has a length (gap, overhead,
compute, deadline, start), which loses nothing: with prices constant between changes the cost is linear in the instants of
switching, so that some best schedule switches at changes of the market, but for one instant that the rest determines.

Work beyond that: a place may be taken late or left early at any granule between two changes (two sliding minima).
Cost of one call: changes x zones x slack / granule, in numpy; about 10 ms for 48 hours in one zone.
"""

from __future__ import annotations

from math import gcd, inf

import numpy as np
import numpy.typing as npt

from orchestrator.domain.errors import UsageError
from orchestrator.simulation.market import HOUR_NS, Market

MOST_GRANULES = 4_000_000
Costs = npt.NDArray[np.float64]


def rigid_optimum(market: Market, start_ns: int, work_ns: int, deadline_ns: int, overhead_ns: int) -> float | None:
    """Nano-dollars; None: no schedule meets the deadline. Raises UsageError when the lengths have no common measure."""
    slack_ns = deadline_ns - start_ns - work_ns
    if slack_ns < overhead_ns:
        return None
    times, counts, prices = _pieces(market, start_ns, deadline_ns)
    granule = gcd(work_ns, slack_ns, overhead_ns, *(at - start_ns for at in times))
    size = slack_ns // granule + 1
    if size > MOST_GRANULES:
        raise UsageError(
            f"the exact optimum would need {size:,} levels of slack",
            hint="give --compute, --restart-overhead and --deadline-ratio lengths with a larger common divisor",
        )
    per = [price * granule / HOUR_NS for price in (*prices[0], market.on_demand)]
    many_prices = any(row != prices[0] for row in prices) or len(market.zones) > 1
    places, last = len(per), len(per) - 1
    overhead, work = overhead_ns // granule, work_ns // granule
    idle = np.full(size, inf)
    idle[0] = 0.0
    held = [np.full(size, inf) for _ in range(places)]
    paid = [0.0] * places  # of held[i], not yet added to it
    open_before = [False] * places
    best = inf
    for piece, began_ns in enumerate(times[:-1]):
        length = (times[piece + 1] - began_ns) // granule
        ended = (times[piece + 1] - start_ns) // granule
        offered = [count > 0 for count in counts[piece]] + [True]
        # Slack that can have been used so far; the rest of the arrays is infinite, or done.
        low = max(0, ended - length - work)
        high = min(size, ended - length + 1 + overhead)
        whole = min(size, ended - length + 1)  # idle: no restart is under way
        for place in range(places):
            if open_before[place]:
                np.minimum(idle[low:whole], held[place][low:whole] + paid[place], out=idle[low:whole])
            if not offered[place] and open_before[place]:
                held[place].fill(inf)
        per = [price * granule / HOUR_NS for price in prices[piece]] + [per[last]]
        top = min(size, high + length + overhead)
        after = _shifted(idle, length)
        for place in range(places):
            if not offered[place]:
                continue
            mine = held[place]
            if paid[place]:
                mine[low:high] += paid[place]
                paid[place] = 0.0
            cost = per[place]
            if low + overhead < size:
                at_once = idle[low : min(whole, size - overhead)]
                view = mine[low + overhead : low + overhead + len(at_once)]
                np.minimum(view, at_once, out=view)
            rising = np.arange(low, top) * cost
            if many_prices:  # leave early: less is paid, more slack is used
                early = _sliding(mine[low:top] + rising, length) - rising + cost * length
                stop = min(top, ended + 1)  # a restart under way at the end of the piece was for nothing
                np.minimum(after[low:stop], early[: stop - low], out=after[low:stop])
            if many_prices or place == last:  # take it late
                late = _sliding(idle[low:top] + rising, length) - rising
                target = mine[low + overhead : top]
                np.minimum(target, late[: len(target)], out=target)
            paid[place] = cost * length
            done = ended - work
            if done >= low:  # the work is done before the piece ends
                stop = min(done + 1, size)
                ready = mine[low:stop] + paid[place] - cost * (done - np.arange(low, stop))
                if len(ready):
                    best = min(best, float(ready.min()))
                mine[:stop] = inf
        if ended > work:
            after[: min(ended - work, size)] = inf
        idle = after
        open_before = offered
    return best if best < inf else None


def _pieces(market: Market, start_ns: int, deadline_ns: int) -> tuple[list[int], list[list[int]], list[list[int]]]:
    """Instants from the start to the deadline between which nothing changes; counts and prices of each piece."""
    counts, prices = market.at(start_ns)
    times, all_counts, all_prices = [start_ns], [counts], [prices]
    for change in market.changes[market.first_after(start_ns) :]:
        if change.at_ns >= deadline_ns:
            break
        if change.at_ns > times[-1]:
            times.append(change.at_ns)
            all_counts.append(all_counts[-1].copy())
            all_prices.append(all_prices[-1].copy())
        all_counts[-1][change.zone], all_prices[-1][change.zone] = change.workers, change.price
    if times[-1] < market.length_ns < deadline_ns:  # nothing is known of what comes after the trace: no spot
        times.append(market.length_ns)
        all_counts.append([0] * len(counts))
        all_prices.append(all_prices[-1])
    return [*times, deadline_ns], all_counts, all_prices


def _shifted(values: Costs, by: int) -> Costs:
    moved = np.full_like(values, inf)
    if by < len(values):
        moved[by:] = values[: len(values) - by]
    return moved


def _sliding(values: Costs, back: int) -> Costs:
    """At each place the least of the `back` + 1 values up to it (van Herk and Gil-Werman: blocks, from both ends)."""
    size, width = len(values), back + 1
    if width >= size:
        return np.minimum.accumulate(values)
    blocks = -(-size // width)
    padded = np.full(blocks * width, inf)
    padded[:size] = values
    table = padded.reshape(blocks, width)
    forward = np.minimum.accumulate(table, axis=1).ravel()
    backward = np.minimum.accumulate(table[:, ::-1], axis=1)[:, ::-1].ravel()
    least = forward[:size].copy()
    np.minimum(least[back:], backward[: size - back], out=least[back:])
    return least
