"""The stochastic dynamic programme behind `auto`: when to wait, when to bridge a gap with on-demand machines, when to go back.

One market, a rigid gang. Time is counted in hours, money in on-demand hours of the whole gang. The market is up (spot is offered) or
down; a spell ends at a rate that depends on the class of its age. The gang is idle, on demand or on spot. With slack S (the time
until the deadline less the work left) and work left W, the least expected cost V solves, over a step of dt hours,

    idle      V(S, W) = E V(S - dt, W)                      waiting uses slack
    working   V(S, W) = price x dt + E V(S, W - dt)         working keeps it
    a start   V(S, W) = price x d + E V(S - d, W)           d: the restart overhead; the market may turn meanwhile

the expectation being over the market's next state. Several zones are one market whose offers end in two ways: with a gap, or with an
offer elsewhere, which costs a start. Slack below zero costs `LATE` on-demand hours an hour. Slack never grows, so
what happens above `SLACK_HOURS` changes nothing below it, and the answer is four thresholds of slack for each age class and amount of
work. They are all that is kept. numpy is imported when the first programme is solved.

Limits: a spell ends at the end of a step, at the rate that keeps its mean length; ages move on at the mean rate of their class;
the rates are taken as known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float32]

LATE = 20.0
"""On-demand hours that an hour beyond the deadline is worth. Safety does not rest on it: the rules in `places` keep deadlines."""
STEPS = 480
"""Steps that the work is divided into."""
SLACK_STEPS = 160
"""Of slack that is looked at; with more than that, waiting is best."""


@dataclass(frozen=True, slots=True)
class Question:
    """What a programme depends on; equal questions share one answer."""

    down_per_hour: tuple[float, ...]
    """At which rate spot comes back, by class of the gap's age."""
    up_per_hour: tuple[float, ...]
    """At which rate it is taken, by class of the spell's age."""
    class_hours: tuple[float, ...]
    """How long a spell stays in each class; the last has no end."""
    overhead_hours: float
    price: float
    """Of spot, where on-demand machines cost 1."""
    work_hours: float
    elsewhere_per_hour: tuple[float, ...] = ()
    """At which rate it is taken while another zone offers it, by class of the spell's age; beyond `up_per_hour`. Empty: never."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Thresholds of slack in hours, each by [age class, step of work]: above it, waiting or spot is the cheaper."""

    step_hours: float
    wait: Array
    """Idle in a gap: wait above, on-demand below."""
    drop: Array
    """On demand in a gap: give the machines back and wait above."""
    hop: Array
    """On demand with spot offered: change to spot above."""
    take: Array
    """Idle with spot offered: spot above, on-demand below."""

    def at(self, thresholds: Array, age: int, work_hours: float) -> float:
        """The threshold at this much work, in hours; straight between steps."""
        last = thresholds.shape[1] - 1
        place = min(max(0.0, work_hours / self.step_hours), float(last))
        low = min(int(place), last - 1)
        share = place - low
        row = thresholds[age]
        between: float = float(row[low]) * (1 - share) + float(row[low + 1]) * share
        return between


def solve(question: Question) -> Answer:
    """Backwards from the deadline, a layer of equal time left at a time."""
    import numpy as np

    kinds = len(question.class_hours)
    step = question.work_hours / STEPS
    overhead, price = question.overhead_hours, question.price
    down, up = np.array(question.down_per_hour), np.array(question.up_per_hour)
    elsewhere = np.array(question.elsewhere_per_hour or (0.0,) * kinds)
    to_idle, to_work = _transitions(np, down, up, elsewhere, np.array(question.class_hours), step)
    layers = STEPS + SLACK_STEPS
    whole = int(overhead / step + 1e-6)
    share = np.float32(overhead / step - whole)
    pad = whole + 2  # columns of negative slack, known beforehand
    columns = SLACK_STEPS + 1
    idle, demand, spot, bridge, offered = (slice(n * kinds, (n + 1) * kinds) for n in range(5))
    slack = (np.arange(columns + pad) - pad) * step
    values = np.zeros((layers + 1 + pad, 5 * kinds, columns + pad), np.float32)
    for layer in range(layers + 1 + pad):  # row `layer + pad` has layer steps until the deadline
        work = np.maximum(0.0, (layer - pad) * step - slack[:pad])
        values[layer, :, :pad] = np.where(work > 0, work - slack[:pad] * LATE, 0.0)
    cost = np.repeat(np.array([step, price * step, step]), kinds).astype(np.float32)[:, None]
    taken = (-np.expm1(-up * overhead)).astype(np.float32)[:, None]
    back = (-np.expm1(-down * overhead)).astype(np.float32)[:, None]
    begin_spot, begin_demand = np.float32(price * overhead), np.float32(overhead)
    better = np.zeros((4, kinds, layers + 1, columns), np.float32)
    later = np.empty((4 * kinds, columns), np.float32)
    for layer in range(1, layers + 1):
        row = layer + pad
        before, now = values[row - 1], values[row]
        worked = min(columns, layer)  # columns with work left
        here = slice(pad, pad + worked)
        now[idle, here] = to_idle @ before[:, pad - 1 : pad - 1 + worked]
        now[kinds : 4 * kinds, here] = to_work @ before[:, here] + cost
        near = values[row - whole, : 4 * kinds, pad - whole : pad - whole + worked]
        far = values[row - whole - 1, : 4 * kinds, pad - whole - 1 : pad - whole - 1 + worked]
        after = later[:, :worked]
        np.multiply(near, 1 - share, out=after)
        after += far * share
        go_demand = begin_demand + after[demand] + back * (after[bridge][:1] - after[demand])
        go_spot = begin_spot + after[spot] + taken * (after[idle][:1] - after[spot])
        go_bridge = begin_demand + after[bridge]
        better[0, :, layer, :worked] = now[idle, here] - go_demand
        better[1, :, layer, :worked] = now[idle, here] - now[demand, here]
        better[2, :, layer, :worked] = go_spot - now[bridge, here]
        better[3, :, layer, :worked] = go_spot - go_bridge
        np.minimum(now[demand, here], now[idle, here], out=now[demand, here])
        np.minimum(now[idle, here], go_demand, out=now[idle, here])
        np.minimum(now[bridge, here], go_spot, out=now[bridge, here])
        np.minimum(go_spot, go_bridge, out=now[offered, here])
    return Answer(step, *(_thresholds(np, table, step) for table in better))


def _transitions(np: Any, down: Any, up: Any, elsewhere: Any, hours: Any, step: float) -> tuple[Array, Array]:
    """Of the market within a step: rows for idle, and rows for on-demand, spot and on-demand with spot offered."""
    kinds = len(hours)
    older = np.minimum(1.0, step / hours)
    older[-1] = 0.0

    def ageing(ends: Any) -> Any:
        stays = np.diag((1 - ends) * (1 - older))
        return stays + np.diag(((1 - ends) * older)[:-1], 1)

    back, taken = np.minimum(1.0, down * step), np.minimum(1.0, up * step)
    table = np.zeros((4, kinds, 5, kinds))
    table[0, :, 0], table[0, :, 4, 0] = ageing(back), back
    table[1, :, 1], table[1, :, 3, 0] = ageing(back), back
    moved = np.minimum(1.0 - taken, elsewhere * step)
    table[2, :, 2], table[2, :, 0, 0], table[2, :, 4] = ageing(taken + moved), taken, np.diag(moved)
    table[3, :, 3], table[3, :, 1, 0] = ageing(taken), taken
    flat = table.reshape(4 * kinds, 5 * kinds).astype(np.float32)
    return flat[:kinds], flat[kinds:]


def _thresholds(np: Any, better: Array, step: float) -> Array:
    """Where, for each class and amount of work, the first option stops being the dearer, going up in slack."""
    columns = better.shape[2]
    work, slack = np.arange(STEPS + 1)[:, None], np.arange(columns)[None, :]
    table = better[:, work + slack, slack]
    dearer = table > 0
    last = columns - 1 - np.argmax(dearer[:, :, ::-1], axis=2)
    never = ~dearer.any(axis=2)
    after = np.minimum(last + 1, columns - 1)
    above = np.take_along_axis(table, last[..., None], 2)[..., 0]
    below = np.take_along_axis(table, after[..., None], 2)[..., 0]
    part = np.clip(above / np.maximum(above - below, 1e-9), 0.0, 1.0)
    found = np.where(after == last, columns * step, (last + part) * step)
    result: Array = np.where(never, 0.0, found).astype(np.float32)
    return result
