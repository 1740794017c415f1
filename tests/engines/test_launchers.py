"""Launchers of agents keep to one interface. That of Ray is asked in tests/cluster."""

from __future__ import annotations

import pytest

from orchestrator.platforms.engines.native.processes import agent_name
from tests.engines.agent_harness import one_agent
from tests.engines.launchers import dismissing_ends_that_agent_alone


@pytest.mark.integration
@pytest.mark.timeout(60)
def test_local_agents_can_be_dismissed() -> None:
    """Processes of this machine: the agent is gone with all that is its when the call returns."""
    with one_agent((1, 1)) as (_, local):

        def agents() -> set[str]:
            return {agent_name(node.name) for node in local.nodes.values() if node.alive}

        def gone(condition: object) -> None:
            assert callable(condition)
            assert condition()

        dismissing_ends_that_agent_alone(local, agents, gone)
