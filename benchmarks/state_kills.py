"""Acknowledged checkpoints that get lost: `make bench-state_kills`. None may.

1. `local`, `s3`: a process saves small checkpoints without end (files, shared files, commit, prune), on the local disk and on
   an S3 server (moto's; large files go up in parts). It is killed (SIGKILL) at random moments, started again as the next
   attempt, killed again. After every kill each checkpoint that it had acknowledged and that retention keeps must be listed
   and read back byte for byte, everything listed must be whole, and cleaning up must leave nothing of the dead.
2. `power`: the same on a disk that forgets whatever was not synced, file or folder, in seeded combinations.
3. `damage`: torn files, flipped bits, full disks: every one must be named with its file (and block), and the older
   checkpoint taken.

Bar: 0 lost, 0 unnamed. The kills count what they hit: the phase in which each of them fell is told.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import _saver
from benchmarks.harness import REPOSITORY, Samples, Verdict, arguments, conclude
from orchestrator.domain.errors import StorageError
from orchestrator.storage import (
    BLOCK_BYTES,
    MANIFEST,
    Held,
    Listed,
    ObjectStore,
    Retention,
    Store,
    open_store,
    retained,
)
from tests.storage.faulty import FullFiles, store_on
from tests.storage.powercut import trial
from tests.storage.s3 import BUCKET, KEY, s3_server

RETENTION = {"last": 2, "best": True, "every_ns": 40}
SIZES = {"local": 300_000, "s3": 2 * BLOCK_BYTES + 100_000}
LONGEST_SECONDS = {"local": 0.1, "s3": 0.4}
MOST_PHASES = {"local": 13, "s3": 7}
"""After how many phases at most the timer of its end starts; cleaning up is the first, then come three a save."""
KILLS_A_SAMPLE = 100
CUTS_A_SAMPLE = 336
DAMAGES_A_SAMPLE = 100
CUTS_A_TRIAL = 4
BARS = {
    "local": ("promises broken by kills, disk", "kills"),
    "power": ("promises broken by power cuts", "cuts"),
    "damage": ("damages not named", "cases"),
    "s3": ("promises broken by kills, S3 server", "kills"),
}
"""What each kind counts, and of how many."""


@dataclass
class Run:
    """One job that is killed again and again, and what it has promised until now."""

    store: Store
    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)
    attempt: int = 0
    promised: dict[int, tuple[Held, int]] = field(default_factory=dict)
    acknowledged: int = 0
    hit: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)

    def kill_once(self, mother: subprocess.Popen[str], rng: random.Random) -> None:
        """Let the next attempt live for a moment, kill it, and look at what is left."""
        self.attempt += 1
        job = {
            "uri": self.store.uri,
            "options": dict(self.options),
            "attempt": self.attempt,
            "seed": rng.getrandbits(32),
            "size": SIZES[self.kind],
            "retention": RETENTION,
            "phases": rng.randint(1, MOST_PHASES[self.kind]),
            "seconds": rng.uniform(0.0, LONGEST_SECONDS[self.kind]),
        }
        assert mother.stdin is not None
        assert mother.stdout is not None
        mother.stdin.write(json.dumps(job) + "\n")
        mother.stdin.flush()
        answer = json.loads(mother.stdout.readline())
        self._hear(answer["lines"])
        if not answer["killed"]:
            self.broken.append(f"attempt {self.attempt} ended by itself: {answer['lines'][-1:]}")
        self._check(f"after kill {self.attempt}")
        if self.attempt % 2:  # the other half is cleaned by the next attempt, which may be killed while it cleans
            self.store.clean_leftovers(self.attempt + 1)
            self._check(f"after cleaning up kill {self.attempt}", names_only=True)
            self.broken += [f"kill {self.attempt} left {name}" for name in leftovers(self.store)]

    def _hear(self, lines: Sequence[str]) -> None:
        phase = "start"
        for line in lines:
            word, *values = line.split(" ")
            if word == "phase":
                phase = values[0]
            elif word == "failed":
                self.broken.append(f"attempt {self.attempt}: {line}")
            else:
                step, best, frozen = map(int, values)
                self.promised[step] = (Held(step, step, bool(best)), frozen)
                self.acknowledged += word == "saved"
        self.hit[phase] += 1

    def _check(self, where: str, *, names_only: bool = False) -> None:
        listing = {listed.step: listed for listed in self.store.list()}
        for step, listed in listing.items():
            if not listed.whole:
                self.broken.append(f"{where}: step {step} is listed and not whole: {listed.why}")
            elif (
                listed.manifest is not None and step not in self.promised
            ):  # committed, and killed before it could say so
                self.promised[step] = (Held(step, step, listed.manifest.best), int(listed.manifest.metrics["frozen"]))
        for step in retained((held for held, _ in self.promised.values()), Retention(**RETENTION)):  # type: ignore[arg-type]
            listed_here = listing.get(step)
            if listed_here is None:
                self.broken.append(f"{where}: step {step} was acknowledged and is lost")
                continue
            if names_only:
                continue
            try:
                same = read(self.store, listed_here, SIZES[self.kind]) == (
                    _saver.weights(step, SIZES[self.kind]),
                    b'{"step": %d}' % step,
                    _saver.FROZEN[self.promised[step][1]],
                )
            except StorageError as error:
                self.broken.append(f"{where}: step {step} was acknowledged and cannot be read: {error}")
                continue
            if not same:
                self.broken.append(f"{where}: step {step} reads back other than it was saved")


def read(store: Store, listed: Listed, size: int) -> tuple[bytes, bytes, bytes]:
    """All that a checkpoint holds, every hash checked."""
    out = bytearray(size)
    with store.ranges(listed) as ranges:
        ranges.read_into("w", "master", 0, size, memoryview(out))
    assert listed.manifest is not None
    shared = next(entry.path for entry in listed.manifest.files if entry.shared)
    return bytes(out), store.read(listed, "trainer.json"), store.read(listed, shared)


def leftovers(store: Store) -> list[str]:
    """What lies in a store beside checkpoints and the shared files that they refer to."""
    if isinstance(store, ObjectStore):
        names = sorted(store._below(""))
        bucket, _, prefix = store._root.partition("/")
        pending = store._filesystem.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=prefix)
        left = [upload["Key"] for upload in pending.get("Uploads", ())]
    else:
        names = [path.relative_to(store.uri).as_posix() for path in Path(store.uri).rglob("*") if path.is_file()]
        left = []
    wanted = set()
    for listed in store.list():
        if listed.manifest is not None:
            wanted.add(f"{listed.name}/{MANIFEST}")
            wanted |= {entry.path if entry.shared else f"{listed.name}/{entry.path}" for entry in listed.manifest.files}
    return left + [name for name in names if name not in wanted]


@contextmanager
def mother(kind: str) -> Iterator[subprocess.Popen[str]]:
    """The process that forks those who are killed."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks._saver", kind],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:  # closes its stdin, which ends it, and waits
        yield process


@contextmanager
def place(kind: str) -> Iterator[Run]:
    """An empty store on the disk or on a server."""
    if kind == "local":
        with tempfile.TemporaryDirectory(prefix="bench-state-") as folder:
            yield Run(open_store(f"{folder}/checkpoints"), kind)
        return
    with s3_server() as (host, port):
        options = {
            "key": KEY,
            "secret": "secret",
            "endpoint_url": f"http://{host}:{port}",
            "client_kwargs": {"region_name": "us-east-1"},
        }
        yield Run(open_store(f"s3://{BUCKET}/checkpoints", options=options), kind, options)


def kill(kind: str, count: int, seed: int) -> Run:
    """`count` kills of one job."""
    rng = random.Random(seed)
    with place(kind) as run, mother(kind) as process:
        for number in range(1, count + 1):
            run.kill_once(process, rng)
            if number % 20 == 0:
                print(f"{kind}: {number} kills, {run.acknowledged} acknowledged, {len(run.broken)} broken", flush=True)
    return run


def cut_power(cuts: int, first_seed: int) -> dict[str, Any]:
    """So many power cuts, the seeds counted from the first."""
    acknowledged, made = 0, 0
    broken: list[str] = []
    for seed in range(first_seed, first_seed - (-cuts // CUTS_A_TRIAL)):
        tally = trial(seed, attempts=CUTS_A_TRIAL)
        made += tally.cuts
        acknowledged += tally.acknowledged
        broken += tally.lost
    return {"cuts": made, "acknowledged": acknowledged, "broken": broken}


def damage(count: int, seed: int) -> dict[str, Any]:
    """Damage the newest of two checkpoints in so many ways, drawn from the seed."""
    rng = random.Random(seed)
    size = 2 * BLOCK_BYTES + 100_000
    broken: list[str] = []
    made: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="bench-state-") as folder:
        store = open_store(folder)
        for step in (1, 2):
            draft = store.draft(step, 1)
            entries = _saver.write(draft, step, size, step - 1)
            draft.commit(_saver.facts(step, 1, size, best=False, frozen=step - 1), entries)
        listed = store.list()[0]
        for number in range(count):
            kind = rng.choice(["flip", "torn", "gone", "full"])
            made[kind] += 1
            if kind == "full":
                name = rng.choice(["rank-00000.bin", "trainer.json", MANIFEST])
                full = store_on(Path(folder), FullFiles(name))
                draft = full.draft(3, 1)
                try:
                    draft.commit(_saver.facts(3, 1, 5_000, best=False, frozen=0), _saver.write(draft, 3, 5_000, 0))
                    broken.append(f"{number}: a full disk went unnoticed")
                except StorageError as error:
                    if "free space" not in str(error):
                        broken.append(f"{number}: a full disk was told as {error}")
                draft.drop()
                continue
            broken += [f"{number}: {why}" for why in _damage_once(store, Path(folder), listed, kind, rng)]
    return {"cases": sum(made.values()), "kinds": dict(made), "broken": broken}


def _damage_once(store: Store, root: Path, listed: Listed, kind: str, rng: random.Random) -> list[str]:
    assert listed.manifest is not None
    entry = rng.choice([*listed.manifest.files, None])
    path = (
        f"{listed.name}/{MANIFEST}" if entry is None else entry.path if entry.shared else f"{listed.name}/{entry.path}"
    )
    content = (root / path).read_bytes()
    position = rng.randrange(len(content))
    spoilt = content[:position]
    if kind == "flip":
        spoilt += bytes([content[position] ^ (1 << rng.randrange(8))]) + content[position + 1 :]
    if kind == "gone":
        (root / path).unlink()
    else:
        (root / path).write_bytes(spoilt)
    found, refused = store.newest_whole()
    (root / path).write_bytes(content)
    harmless = kind == "flip" and entry is None and found == listed  # white space, or a digit of the same value
    if harmless:
        return []
    why = refused[0].why or "" if refused else ""
    named = ("manifest" in why) if entry is None else entry.path in why
    if kind == "flip" and entry is not None and entry.xxh3:
        named = named and f"block {position // BLOCK_BYTES} " in why
    if found is None or found.step != 1 or not named:
        return [f"{kind} of {path} at {position}: found {found and found.step}, refused because {why!r}"]
    return []


def take(kind: str, number: int) -> dict[str, Any]:
    """One sample of a kind; its number is the seed."""
    if kind == "power":
        return cut_power(CUTS_A_SAMPLE, number * CUTS_A_SAMPLE)
    if kind == "damage":
        return damage(DAMAGES_A_SAMPLE, number)
    run = kill(kind, KILLS_A_SAMPLE, number)
    return {"kills": run.attempt, "hit": dict(run.hit), "acknowledged": run.acknowledged, "broken": run.broken}


def main() -> int:
    parser = arguments(__doc__, samples=3)
    parser.add_argument("--only", choices=BARS, help="one kind alone")
    given = parser.parse_args()
    samples = Samples("state_kills")
    kinds = [given.only] if given.only else list(BARS)
    for kind in kinds:
        for number in samples.missing(kind, given.samples):
            with samples.sample(kind) as sample:
                sample.update(take(kind, number))
    return report({kind: [row["sample"] for row in samples.rows(kind)] for kind in kinds})


def report(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> int:
    verdicts = []
    for kind, taken in rows.items():
        what, unit = BARS[kind]
        for sample in taken:
            print(f"{kind}: {json.dumps({name: value for name, value in sample.items() if name != 'broken'})}")
        broken = [why for sample in taken for why in sample["broken"]]
        print("\n".join(f"  {why}" for why in broken[:20]), end="\n" if broken else "")
        verdicts.append(Verdict(what, 0, len(broken), "", sum(sample[unit] for sample in taken), "count"))
    return conclude(verdicts)


if __name__ == "__main__":
    sys.exit(main())
