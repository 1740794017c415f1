"""One scene of `node_loss` on the native engine: the real worker loop, three small Ray nodes, one event after the other.

    python -m benchmarks._native_scene benchmarks/node_loss.yaml --stage 2 --events kill:0,join,notice:0

The engine lives in this process, its agents in Ray actors, its workers below them. An event comes when every slot has its
standby again: a loss in the first seconds of a run waits for workers that are still starting. Prints one JSON object an event, when
it is over, with the same figures as the rival's (benchmarks/_node_scenes.py says what they are).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks._native_attempt import Run
from benchmarks._node_scenes import play, programme
from orchestrator.domain.clock import SystemClock
from orchestrator.platforms.engines.base import RunRequest

PATIENCE_SECONDS = 150.0
SOONER = {"RAY_health_check_period_ms": "1000"}
"""Ray finds a dead node in 5 s instead of 15, and until then gives out no other place for what was there. What is measured of a
loss is over long before; the next event comes sooner."""


def _on_ray(request: RunRequest) -> Any:
    from orchestrator.platforms.engines.native.ray_launcher import RayLauncher

    return RayLauncher(request, f"driver-{request.uid}", SystemClock(), sources="")


def _begin(run: Run) -> None:
    """Ray is connected by now."""
    import ray

    run.begin(_on_ray, ray.util.get_node_ip_address())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job")
    parser.add_argument("--stage", type=int, default=2, choices=(1, 2, 3))
    parser.add_argument("--events", default="kill:0", help="such as kill:0,join,notice:0; 0 is the node of rank 0")
    parser.add_argument("--story", action="store_true", help="print what the engine told, too")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-native-", ignore_cleanup_errors=True) as folder:
        run = Run(given.job, [f"spec.deepspeed.stage={given.stage}"], Path(folder))
        try:
            for result in play(
                programme(given.events),
                lambda: _begin(run),
                run.rows,
                PATIENCE_SECONDS,
                run.finish,
                run.settled,
                SOONER,
            ):
                if given.story:
                    for event in run.story(result["event_ns"]):
                        print(event, file=sys.stderr)
                print(json.dumps({"stage": given.stage, **result}), flush=True)
        except BaseException:
            print("\n".join([*map(str, run.story(0)), *run.logs(), *run.standbys()]), file=sys.stderr)
            raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
