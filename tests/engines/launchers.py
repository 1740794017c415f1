"""What every launcher of agents promises, asked of those that bring processes of this machine and of those on Ray."""

from __future__ import annotations

from collections.abc import Callable

from orchestrator.platforms.engines.native.coordinator import Launcher


def dismissing_ends_that_agent_alone(
    launcher: Launcher, agents: Callable[[], set[str]], until: Callable[..., None]
) -> None:
    """Of two agents one is dismissed: it goes, the other stays; one that is gone or was never there is let be."""
    first, second = sorted(agents())
    launcher.dismiss(first, "it does not answer")
    until(lambda: first not in agents())
    assert second in agents()
    launcher.dismiss(first, "it does not answer")
    launcher.dismiss("agent-of-nobody", "it does not answer")
    assert second in agents()
