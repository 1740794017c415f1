"""A world of recorded or made-up spot markets, without a tick: it drives capacity policies, books what they hold, and knows what
the best of all schedules would have cost. Importing this package reads no numpy; `optimum` does.
"""

from __future__ import annotations

from orchestrator.simulation.traces import Series, Trace, ZonePrices, flags, read_series, read_trace

__all__ = ["Series", "Trace", "ZonePrices", "flags", "read_series", "read_trace"]
