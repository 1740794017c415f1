"""Reading a job's log files: whole, from the end, and as they grow.

The driver appends to `<run_dir>/logs/rank-N.log` and `driver.log`; nobody tells the reader that a file has grown, so
whoever follows calls `LogFollower.read` again after a pause. A read takes what is new, whole lines only, at most
`BLOCK_BYTES` a file, so that one long file holds up neither the others nor the caller.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

BLOCK_BYTES = 256 * 1024
LONGEST_LINE_BYTES = 64 * 1024
"""A longer line is given out in pieces."""

_NAME = re.compile(r"(?:rank-(\d+)|(driver))\.log")


class LogLine(NamedTuple):
    rank: str
    """A number, or `driver`."""
    line: str


def log_files(folder: Path, rank: str) -> list[tuple[str, Path]]:
    """(rank, file) of the logs there are now, ranks in order and the driver last; `rank` is a number, `driver` or `all`."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    found = [(match[1] or match[2], folder / name) for name in names if (match := _NAME.fullmatch(name))]
    chosen = [pair for pair in found if rank in ("all", pair[0])]
    return sorted(chosen, key=lambda pair: (pair[0] == "driver", int(pair[0]) if pair[0].isdigit() else 0))


class LogFollower:
    """Hands out the lines of a job's logs, each once. `tail`: only the last so many lines of what is there already."""

    def __init__(self, folder: Path, rank: str, tail: int | None = None) -> None:
        self._folder = folder
        self._rank = rank
        self._offsets: dict[Path, int] = {}
        if tail is not None:
            self._offsets = {file: _offset_of_tail(file, tail) for _, file in log_files(folder, rank)}

    def read(self) -> list[LogLine]:
        """What is new since the last read; empty when nothing is."""
        return [line for rank, file in log_files(self._folder, self._rank) for line in self._new_lines(rank, file)]

    def rest(self) -> list[LogLine]:
        """What is new, and then the unfinished last lines: nobody will finish them any more."""
        lines = self.read()
        if lines:
            return lines
        for rank, file in log_files(self._folder, self._rank):
            data = _read(file, self._offsets.get(file, 0), BLOCK_BYTES)
            if data:
                self._offsets[file] = self._offsets.get(file, 0) + len(data)
                lines.append(LogLine(rank, data.decode("utf-8", "replace")))
        return lines

    def _new_lines(self, rank: str, file: Path) -> Iterator[LogLine]:
        offset = self._offsets.get(file, 0)
        data = _read(file, offset, BLOCK_BYTES)
        end = data.rfind(b"\n") + 1
        if end == 0:
            if len(data) < LONGEST_LINE_BYTES:
                return
            end = len(data)
        self._offsets[file] = offset + end
        for line in data[:end].removesuffix(b"\n").split(b"\n"):
            yield LogLine(rank, line.decode("utf-8", "replace"))


def _read(file: Path, offset: int, limit: int) -> bytes:
    try:
        with open(file, "rb") as log:
            log.seek(offset)
            return log.read(limit)
    except FileNotFoundError:
        return b""


def _offset_of_tail(file: Path, lines: int) -> int:
    """Where the last `lines` lines of the file begin, found by reading back from its end."""
    with open(file, "rb") as log:
        position = log.seek(0, os.SEEK_END)
        if lines == 0:
            return position
        wanted = lines
        if position:
            log.seek(position - 1)
            wanted += log.read(1) == b"\n"
        while position > 0:
            start = max(0, position - BLOCK_BYTES)
            log.seek(start)
            block = log.read(position - start)
            count = block.count(b"\n")
            if count >= wanted:
                at = len(block)
                for _ in range(wanted):
                    at = block.rfind(b"\n", 0, at)
                return start + at + 1
            wanted -= count
            position = start
        return 0
