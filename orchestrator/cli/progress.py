"""What a person sees while a job runs: one live line on a terminal, one line for each change elsewhere.

Changes worth a line are: another phase, an evaluation, a checkpoint, every tenth of the way. Polls are never shown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from orchestrator.cli.view import NOTHING, RESTING, JobView, metrics_line

if TYPE_CHECKING:
    from orchestrator.cli.context import Context

REDRAW_SECONDS = 0.2
BAR_WIDTH = 20


class Milestones:
    """Tells what is new since the last look."""

    def __init__(self, *, tenths: bool, checkpoints: bool) -> None:
        self._phase: tuple[str, int] | None = None
        self._message = ""
        self._metrics: dict[str, dict[str, Any]] = {}
        self._checkpoint: int | None = None
        self._tenth = 0
        self._tenths = tenths
        self._checkpoints = checkpoints

    def news(self, job: JobView) -> list[str]:
        lines: list[str] = []
        attempt = int(job.status.get("attempt") or 0)
        phase = [f"{job.phase}: {job.message}" if job.message else job.phase]
        if (job.phase, attempt) == self._phase and (job.phase != "Running" or job.message in ("", self._message)):
            phase = []  # a running job's message changes only when it is asked to stop, or can be watched no more
        self._message = job.message
        metrics = job.metrics()
        for split, values in metrics.items():
            if values != self._metrics.get(split):
                lines.append(f"{split or 'evaluation'}: {metrics_line(values)}")
        if self._phase is None:
            # The first look: what has long been so is no news.
            lines = []
            self._checkpoint = job.checkpoint.get("step")
            self._tenth = int((job.percent or 0) // 10)
        self._phase, self._metrics = (job.phase, attempt), metrics
        step = job.checkpoint.get("step")
        if step is not None and step != self._checkpoint and self._checkpoints:
            lines.append(f"checkpoint: step {step:,} is durable")
        self._checkpoint = step
        tenth = int((job.percent or 0) // 10)
        if self._tenths and tenth > self._tenth and job.phase not in RESTING:
            lines.append(summary(job))
        self._tenth = max(tenth, self._tenth)
        # What a phase brought comes after it, and what came before its end comes before that.
        return [*lines, *phase] if job.phase in RESTING else [*phase, *lines]


def summary(job: JobView) -> str:
    """`step 412/1,066  39 %  loss 0.4312  85 samples/s  left 2m10s  $0.0412`."""
    parts = [f"step {job.steps}"] if job.step is not None else []
    if job.percent is not None:
        parts.append(f"{job.percent:.0f} %")
    return "  ".join(parts + _figures(job))


def _figures(job: JobView) -> list[str]:
    parts = []
    if job.loss != NOTHING:
        parts.append(f"loss {job.loss}")
    if (speed := job.progress.get("samplesPerSecond")) is not None and job.phase not in RESTING:
        parts.append(f"{speed:,.0f} samples/s")
    if job.eta != NOTHING:
        parts.append(f"left {job.eta}")
    if job.cost:
        parts.append(job.total_cost)
    return parts


def bar(percent: float, width: int, *, drawn: bool) -> str:
    """A bar of `width` columns; plain ASCII unless `drawn`."""
    filled = min(max(percent, 0.0), 100.0) / 100 * width
    whole = int(filled)
    if not drawn:
        return "[" + "#" * whole + "." * (width - whole) + "]"
    head = "╸" if filled - whole >= 0.5 and whole < width else ""
    return "━" * whole + head + "─" * (width - whole - len(head))


def live_line(job: JobView, width: int, *, drawn: bool, spinner: str) -> str:
    """The one line of a terminal, never longer than `width`; the bar goes first when it is narrow."""
    if job.percent is None or job.phase not in ("Running", "Resizing"):
        head, drawing = f"{spinner} {job.phase}", ""
    else:
        head = f"{spinner} {job.phase}  step {job.steps}  {job.percent:.0f} %"
        drawing = "  " + bar(job.percent, BAR_WIDTH, drawn=drawn)
    figures = "".join(f"  {part}" for part in _figures(job))
    if not figures and job.message:
        figures = f"  {job.message}"
    for text in (head + drawing + figures, head + figures):
        if len(text) <= width:
            return text
    return text[: max(0, width - 1)] + "…" if drawn else text[:width]


class Display:
    """Shows a job's progress on stderr."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._live = context.err.isatty() and context.environ.get("TERM") != "dumb"
        self._drawn = context.draws(context.err)
        self._milestones = Milestones(tenths=not self._live, checkpoints=not self._live)
        self._start_ns = context.clock.monotonic_ns()
        self._turn = 0
        self._shown = False

    def update(self, job: JobView) -> None:
        """Take in the newest resource; call it at most once every `REDRAW_SECONDS`."""
        for line in self._milestones.news(job):
            self.note(line)
        if self._live and not job.ended:
            self._turn += 1
            frames = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏" if self._drawn else "|/-\\"
            width = self._context.width(self._context.err) - 1
            text = live_line(job, width, drawn=self._drawn, spinner=frames[self._turn % len(frames)])
            self._raw(f"\r\x1b[2K{text}")
            self._shown = True

    def note(self, line: str) -> None:
        """A line that stays, with the time since the following began."""
        self.clear()
        from orchestrator.domain.quantities import format_duration

        elapsed = format_duration(self._context.clock.monotonic_ns() - self._start_ns)
        self._context.say(f"{elapsed:>6}  {line}")

    def clear(self) -> None:
        """Take the live line away."""
        if self._shown:
            self._raw("\r\x1b[2K")
            self._shown = False

    def _raw(self, text: str) -> None:
        try:
            self._context.err.write(text)
            self._context.err.flush()
        except BrokenPipeError:
            self._live = False
