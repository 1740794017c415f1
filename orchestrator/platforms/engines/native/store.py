"""The meeting place of the ranks: a `torch.distributed.TCPStore` server in a process of its own, beside the coordinator.

    python -m orchestrator.platforms.engines.native.store HOST

It listens on HOST alone when that is an address of this machine, otherwise on all interfaces; prints its port on a line; and ends
when its standard input closes. It never lives on a worker, so that no worker's end takes it away. Generations do not meet
in it: torch puts every key of a world under its generation.

Limits: torch's store asks nobody for a token. Whoever reaches the port can disturb a world that forms.
"""

from __future__ import annotations

import sys
from datetime import timedelta

from orchestrator.platforms.engines.native.lines import listen


def main() -> int:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # it is, under a condition

    host = sys.argv[1]
    server = listen(host, 0, backlog=1024)
    port = server.getsockname()[1]
    store = TCPStore(
        host,
        port,
        is_master=True,
        wait_for_workers=False,
        timeout=timedelta(seconds=30),
        master_listen_fd=server.detach(),
    )
    sys.stdout.write(f"{store.port}\n")
    sys.stdout.flush()
    sys.stdin.read()
    return 0


if __name__ == "__main__":
    sys.exit(main())
