"""The driver of a soak in a process of its own, so that it can be killed: `python -m benchmarks._soak_driver`.

Commands come on standard input, one JSON object a line: first how to begin, then {"size": n}, {"stop": true} and
{"look": n}. What the engine tells, and what is asked of a launcher, goes to standard output, one object a line. The agents
are the soak's, not this process's: whoever comes after it takes them over.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks._native_attempt import elastic_request
from orchestrator.domain.clock import SystemClock
from orchestrator.platforms.engines.base import WishBoard
from orchestrator.platforms.engines.native import NativeEngine
from orchestrator.platforms.engines.native.messages import READY, Address
from orchestrator.spec import load_file


class Teller:
    """Lines to the soak, from any thread. Also the engine's launcher, which only passes on what is asked of it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def say(self, document: Mapping[str, Any]) -> None:
        with self._lock:
            sys.stdout.write(json.dumps(document) + "\n")
            sys.stdout.flush()

    def start(self, address: Address, token: str) -> None:
        self.say({"kind": "address", "address": list(address)})

    def want(self, slots: int) -> None:
        self.say({"kind": "want", "slots": slots})

    def dismiss(self, agent: str, why: str) -> None:
        self.say({"kind": "dismiss", "agent": agent, "why": why})

    def stop(self) -> None:
        """The soak waits for its agents itself."""


def look(engine: NativeEngine) -> dict[str, Any]:
    """The engine's own state, which no port shows: state, members with their processes, agents with a ready standby."""
    coordinator = engine._running
    if coordinator is None:
        return {}
    gang = coordinator._gang
    members = []
    for member in () if gang.world is None else gang.world.members:
        agent = gang.roster.agents.get(member.agent)
        worker = None if agent is None else agent.workers.get(member.worker)
        members.append({"rank": member.rank, "node": member.node, "pid": None if worker is None else worker.pid})
    agents = list(gang.roster.agents.values())
    ready = [agent.node for agent in agents if agent.standbys(READY)]
    return {
        "state": gang.state.value,
        "generation": gang.generation,
        "members": members,
        "agents": [agent.node for agent in agents],
        "ready": ready,
    }


def main() -> int:
    begin = json.loads(sys.stdin.readline())
    teller, clock, board = Teller(), SystemClock(), WishBoard(size=begin["size"])
    engine = NativeEngine(
        lambda request: teller, clock, environ=dict(os.environ), token=begin["token"], adopt=begin["adopt"]
    )

    def obey() -> None:
        for line in sys.stdin:
            command = json.loads(line)
            if "size" in command:
                board.wish_size(command["size"])
            elif "look" in command:
                try:
                    teller.say({"kind": "look", "number": command["look"], **look(engine)})
                except RuntimeError:  # a table changed while it was read: the next look will do
                    teller.say({"kind": "look", "number": command["look"]})
            else:
                board.wish_stop()

    def heard(events: Sequence[Mapping[str, Any]]) -> None:
        for event in events:
            teller.say(event)

    threading.Thread(target=obey, daemon=True).start()
    job = begin["job"]
    request = elastic_request(load_file(job), Path(job), Path(begin["folder"]), "soak")
    outcome = engine.run(request, heard, board)
    teller.say({"kind": "outcome", "reason": outcome.reason, "message": outcome.message})
    return 0


if __name__ == "__main__":
    sys.exit(main())
