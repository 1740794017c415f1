"""Nothing that was damaged is taken for whole, and the newest whole one is found behind it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator import storage
from orchestrator.domain.errors import NotFound
from tests.storage.samples import save


def flip(path: Path, position: int, bit: int = 1) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= bit
    path.write_bytes(bytes(content))


def drop_digest(folder: Path) -> None:
    body = json.loads((folder / storage.MANIFEST).read_text())
    body["global_step"] = 99
    (folder / storage.MANIFEST).write_text(json.dumps(body))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped bit": (lambda folder: flip(folder / "deepspeed" / "model.pt", 500), "sha256"),
    "truncated file": (lambda folder: (folder / "deepspeed" / "model.pt").write_bytes(b"x" * 999), "999 bytes"),
    "missing file": (lambda folder: (folder / "rank-00000.pt").unlink(), "is missing"),
    "extra file": (lambda folder: (folder / "stranger").write_bytes(b""), "not in its manifest"),
    "no manifest": (lambda folder: (folder / storage.MANIFEST).unlink(), "never finished"),
    "torn manifest": (
        lambda folder: (folder / storage.MANIFEST).write_bytes((folder / storage.MANIFEST).read_bytes()[:100]),
        "torn",
    ),
    "empty manifest": (lambda folder: (folder / storage.MANIFEST).write_bytes(b""), "torn"),
    "edited manifest": (drop_digest, "own digest"),
    "list as manifest": (lambda folder: (folder / storage.MANIFEST).write_text("[]"), "not a JSON object"),
    "later format": (
        lambda folder: (folder / storage.MANIFEST).write_text('{"format": "orchestrate-checkpoint/9"}'),
        "orchestrate-checkpoint/1",
    ),
    "other name": (lambda folder: folder.rename(folder.with_name("step-00000009")), "step 2"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_refused_by_name_and_the_older_one_taken(uri: Path, damage: str) -> None:
    """Each kind of damage to the newest checkpoint is told in words, and the one before it is chosen."""
    save(uri, 1)
    newest = save(uri, 2)
    spoil, words = DAMAGES[damage]
    spoil(newest.folder)
    found, refused = storage.newest_whole(str(uri))
    assert found is not None
    assert found.step == 1
    assert len(refused) == 1
    assert words in str(refused[0].why)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_bit_anywhere_is_noticed(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """One bit turned over in any file, the manifest included, makes the checkpoint refused."""
    uri = tmp_path_factory.mktemp("bits")
    folder = save(uri, 2).folder
    name = data.draw(st.sampled_from(storage.LocalFiles().tree(folder)))
    path = folder / name
    before = path.read_bytes()
    flip(path, data.draw(st.integers(0, len(before) - 1)), 1 << data.draw(st.integers(0, 7)))
    if name == storage.MANIFEST:
        checked = storage.verify(folder)
        # White space outside strings is the one thing that may change without a change of meaning.
        assert not checked.whole or json.loads(path.read_bytes()) == json.loads(before)
    else:
        assert not storage.verify(folder).whole


def test_the_list_is_newest_first_and_ignores_foreign_names(uri: Path) -> None:
    """Order is by step, not by name's age; other folders and half-written ones are no checkpoints."""
    for step in (3, 100_000_000, 20):
        save(uri, step)
    (uri / "notes").mkdir()
    storage.begin(str(uri), 30, 4)
    assert [item.step for item in storage.list_checkpoints(str(uri))] == [100_000_000, 20, 3]
    assert storage.list_checkpoints(str(uri / "nowhere")) == []
    assert storage.newest_whole(str(uri / "nowhere")) == (None, [])


def test_verifying_what_is_not_there_is_not_found(uri: Path) -> None:
    """A folder that does not exist is NotFound, not a refusal."""
    with pytest.raises(NotFound):
        storage.verify(uri / "step-00000001")


def test_a_link_inside_counts_as_a_stranger(uri: Path) -> None:
    """A symbolic link that the manifest does not know makes the checkpoint refused."""
    folder = save(uri, 1).folder
    (folder / "link").symlink_to(uri)
    assert not storage.verify(folder).whole
