"""Count the spells of recorded spot markets by class of age, and write them as `orchestrator/policy/capacity/recorded.py`.

    python -m benchmarks.spot_priors FOLDER [--write]

FOLDER holds traces of the public repository skypilot-org/spot-traces in its own layout. A gang of all machines of a trace counts:
the market is up at a tick with all of them. The last spell of a trace, whose end was not seen, is left out, as it is for a zone that
is watched (`SpotHistory.exposure`). Byte-identical files count once. Without --write the module is printed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import orchestrator.policy.capacity as package
from orchestrator.policy.capacity.history import AGE_EDGES_SECONDS, SpotHistory

HEAD = '''"""Spells of recorded spot markets by class of age. Written by `benchmarks/spot_priors.py`; not edited by hand.

Counted from the public repository skypilot-org/spot-traces (data of Wu et al., "Can't Be Late", NSDI 2024; AWS October 2022 to
August 2023, Google Cloud April 2023): how many spells ended at an age of each class, and for how many hours spells of that age
were watched. Only these counts are kept.
"""

from __future__ import annotations

'''


def rows(folder: Path) -> list[tuple[str, SpotHistory, int]]:
    """Name, history and size of the gang of every trace."""
    found, known = [], set()
    for path in sorted(folder.glob("*/*/*/*.json")):
        text = path.read_text()
        if text in known:
            continue
        known.add(text)
        document = json.loads(text)
        gap_ns = round(document["metadata"]["gap_seconds"] * 1e9)
        data = [int(value) for value in document["data"]]
        history = SpotHistory(enumerate_ns(data, gap_ns))
        found.append((str(path.relative_to(folder).with_suffix("")), history, max(data)))
    return found


def enumerate_ns(data: list[int], gap_ns: int) -> list[tuple[int, int]]:
    return [(tick * gap_ns, count) for tick, count in enumerate(data)]


def module(folder: Path) -> str:
    """The text of `recorded.py`."""
    edges = ", ".join(f"{edge:g}" for edge in AGE_EDGES_SECONDS)
    text = HEAD + f"EDGES_SECONDS = ({edges})\n" + '"""Where one class of ages ends and the next begins."""\n'
    text += (
        "RECORDED: tuple[tuple[str, tuple[int, ...], tuple[float, ...], tuple[int, ...], tuple[float, ...]], ...] = (\n"
    )
    for name, history, machines in rows(folder):
        seen = history.exposure(machines)
        down, up = (tuple(round(hours, 1) for hours in part) for part in seen.hours)
        text += f"    ({json.dumps(name)}, {seen.ended[0]}, {down}, {seen.ended[1]}, {up}),\n"
    return text + ')\n"""Name; gaps ended, hours in gaps; offers ended, hours in offers."""\n'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--write", action="store_true", help="write the module instead of printing it")
    arguments = parser.parse_args()
    text = module(arguments.folder)
    if arguments.write:
        Path(package.__file__).with_name("recorded.py").write_text(text)
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
