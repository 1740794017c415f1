"""From files to samples: every row is accounted for, and bad data is told with file and line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.spec.models import Data
from orchestrator.training import dataset
from orchestrator.training.errors import WorkerFailed
from orchestrator.training.sources import Row, locate, read_rows


def data(**fields: Any) -> Data:
    return Data.model_validate({"source": {"uri": "data.csv"}, **fields})


def rows(*pairs: tuple[Any, Any]) -> dict[str, list[Row]]:
    return {
        "source": [Row(number, {"text": text, "label": label}) for number, (text, label) in enumerate(pairs, start=2)]
    }


def balanced(count: int) -> dict[str, list[Row]]:
    return rows(*((f"text number {number}", "ab"[number % 2]) for number in range(count)))


def failure(files: dict[str, list[Row]], **fields: Any) -> WorkerFailed:
    with pytest.raises(WorkerFailed) as caught:
        dataset.build(files, data(**fields), labelled=True)
    assert caught.value.reason == "DataInvalid"
    return caught.value


def test_splits_keep_the_proportions_of_the_labels() -> None:
    """80/10/10 of an uneven set is 80/10/10 of each label."""
    files = rows(*((f"text {number}", "rare" if number < 20 else "common") for number in range(200)))
    found = dataset.build(files, data(), labelled=True)
    assert {name: len(samples) for name, samples in found.splits.items()} == {
        "train": 160,
        "validation": 20,
        "test": 20,
    }
    assert found.counts["test_labels"] == {"common": 18, "rare": 2}
    assert found.labels == ("common", "rare")


def test_splits_follow_the_seed_and_share_nothing() -> None:
    """The same seed gives the same splits, another one others; no row is in two of them."""
    first = dataset.build(balanced(100), data(seed=1), labelled=True)
    again = dataset.build(balanced(100), data(seed=1), labelled=True)
    other = dataset.build(balanced(100), data(seed=2), labelled=True)
    assert first.splits == again.splits
    assert first.splits != other.splits
    lines = [sample.line for samples in first.splits.values() for sample in samples]
    assert len(set(lines)) == len(lines) == 100


words = st.sampled_from(
    ["good film", "Good film!", "bad film", "dull", "", "  ", "fine", "so so", "quite long and dull"]
)


@given(
    pairs=st.lists(st.tuples(words, st.sampled_from("ab")), min_size=1, max_size=40),
    deduplicate=st.sampled_from(["None", "Exact", "Normalized"]),
    conflicts=st.sampled_from(["Keep", "Drop"]),
    limit=st.one_of(st.none(), st.integers(1, 5)),
)
def test_the_counts_add_up(pairs: list[tuple[str, str]], deduplicate: str, conflicts: str, limit: int | None) -> None:
    """What was read is what was dropped, by reason, plus what the splits hold."""
    wish = data(
        cleaning={"deduplicate": deduplicate, "labelConflicts": conflicts, "leakage": "Drop"},
        limit={} if limit is None else {"train": limit},
    )
    try:
        found = dataset.build(rows(*pairs), wish, labelled=False)
    except WorkerFailed:
        return  # nothing is left to train on; its message has a test of its own
    counts = found.counts
    gone = ("filtered_out", "empty", "duplicates", "conflicts", "leaked", "unused")
    assert counts["read"] == sum(counts.get(name, 0) for name in gone) + sum(counts[name] for name in dataset.SPLITS)


def test_duplicates_are_dropped_as_asked() -> None:
    """Exact drops equal texts, Normalized also those that differ in case and punctuation."""
    pairs = [*((f"text {n}", "ab"[n % 2]) for n in range(20)), ("text 1", "b"), ("TEXT, 3!", "b")]
    for how, kept in (("None", 22), ("Exact", 21), ("Normalized", 20)):
        wish = data(cleaning={"deduplicate": how, "leakage": "Allow"})
        found = dataset.build(rows(*pairs), wish, labelled=True)
        assert sum(map(len, found.splits.values())) == kept


def test_label_conflicts_fail_drop_or_stay() -> None:
    """Equal texts with two labels are told with their line, dropped on both sides, or kept, as asked."""
    pairs = [*((f"text {n}", "ab"[n % 2]) for n in range(20)), ("Text 1.", "a")]
    assert "line 3" in failure(rows(*pairs), cleaning={"labelConflicts": "Fail"}).message
    found = dataset.build(rows(*pairs), data(cleaning={"labelConflicts": "Drop"}), labelled=True)
    assert found.counts["conflicts"] == 2
    assert sum(map(len, found.splits.values())) == 19


def test_leakage_between_splits_fails_or_is_dropped_from_the_test_side() -> None:
    """A test text that also stands in train, but for case, is refused by default and never trained away."""
    files = {
        "train": [Row(n, {"text": f"text {n}", "label": "ab"[n % 2]}) for n in range(2, 10)],
        "test": [Row(2, {"text": "Text 4!", "label": "a"}), Row(3, {"text": "new", "label": "b"})],
    }
    wish = {"train": {"uri": "a.csv"}, "test": {"uri": "b.csv"}}
    with pytest.raises(WorkerFailed, match="also stand in train, first in test, line 2"):
        dataset.build(files, Data.model_validate(wish), labelled=True)
    found = dataset.build(files, Data.model_validate({**wish, "cleaning": {"leakage": "Drop"}}), labelled=True)
    assert [sample.text for sample in found.splits["test"]] == ["new"]
    assert found.counts["leaked"] == 1
    assert len(found.splits["train"]) == 8


@pytest.mark.parametrize(
    ("files", "fields", "words"),
    [
        (balanced(10), {"filter": [{"column": "label", "equals": ["c"]}]}, "none of the 10 rows"),
        (
            balanced(10),
            {"filter": [{"column": "source", "equals": ["x"]}]},
            "no column 'source'; it has 'text', 'label'",
        ),
        (balanced(10), {"columns": {"text": "review", "label": "label"}}, "no column 'review'"),
        (rows(*((f"t{n}", "a") for n in range(10))), {}, "single class"),
        (balanced(20), {"labels": ["a", "c"]}, "label 'b' is not in data.labels"),
        (rows(("fine", "a"), (17, "b")), {}, "line 3: the text is int"),
        (rows(("fine", "a"), ("dull", None)), {}, "line 3: the label is missing"),
        (rows(("", "a"), (" ", "b")), {}, "no samples to train on"),
        (rows(("", "a"), ("x", "b")), {"cleaning": {"dropEmpty": False}}, "line 2: the text is empty"),
        ({"source": []}, {}, "holds no rows"),
    ],
)
def test_bad_data_is_refused_in_words(files: dict[str, list[Row]], fields: dict[str, Any], words: str) -> None:
    """Each kind of bad data is DataInvalid with the column, value or line that is wrong."""
    assert words in failure(files, **fields).message


def test_a_label_of_test_that_train_lacks_is_refused() -> None:
    """A class that is never trained cannot be tested."""
    files = {
        "train": [Row(n, {"text": f"text {n}", "label": "ab"[n % 2]}) for n in range(2, 10)],
        "test": [Row(2, {"text": "other", "label": "c"})],
    }
    wish = Data.model_validate({"train": {"uri": "a.csv"}, "test": {"uri": "b.csv"}})
    with pytest.raises(WorkerFailed, match=r"data\.test, line 2: label 'c' is not in train"):
        dataset.build(files, wish, labelled=True)


def test_numbers_as_labels_are_sorted_as_numbers() -> None:
    """Labels 0 to 10 keep their numeric order; a fixed order in the job wins."""
    files = rows(*((f"text {n}", n % 11) for n in range(110)))
    assert dataset.build(files, data(), labelled=True).labels == tuple(str(n) for n in range(11))
    fixed = ["1", "0"]
    files = rows(*((f"text {n}", n % 2) for n in range(20)))
    assert dataset.build(files, data(labels=fixed), labelled=True).labels == ("1", "0")


def test_limits_keep_so_many_rows() -> None:
    """`limit` cuts a split to a seeded choice of its rows and counts the rest as unused."""
    found = dataset.build(balanced(100), data(limit={"train": 7, "test": 3}), labelled=True)
    assert [len(found.splits[name]) for name in dataset.SPLITS] == [7, 10, 3]
    assert found.counts["unused"] == 80


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", b"", "is empty"),
        ("a.csv", b"text,label\nfine,a,b\n", "a.csv:2: 3 fields, but 2 columns"),
        ("a.csv", b'text,label\n"fine,a\n', "a.csv:"),
        ("a.csv", b"text,text\n", "column 'text' stands there twice"),
        ("a.csv", b"text,label\ncaf\xe9,a\n", "a.csv:2: byte 0xe9 is not utf-8"),
        ("a.jsonl", b'{"text": "fine"}\n{"text": \n', "a.jsonl:2: not JSON"),
        ("a.jsonl", b"[1]\n", "a.jsonl:1: not a JSON object"),
    ],
)
def test_broken_files_are_told_with_their_line(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    """A file that is not what its format says names file and line."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WorkerFailed, match="DataInvalid") as caught:
        read_rows(name, "CSV" if name.endswith("csv") else "JSONL", "utf-8", tmp_path)
    assert words in caught.value.message


def test_files_are_read_with_their_lines_and_encoding(tmp_path: Path) -> None:
    """Quoted line breaks, a byte-order mark, another encoding and unusual line ends inside JSON are read as meant."""
    (tmp_path / "a.csv").write_bytes(b'\xef\xbb\xbftext,label\n"two\nlines",a\n\nfine,b\n')
    assert [(row.line, row.fields) for row in read_rows("a.csv", "CSV", "utf-8", tmp_path)] == [
        (3, {"text": "two\nlines", "label": "a"}),
        (5, {"text": "fine", "label": "b"}),
    ]
    (tmp_path / "b.csv").write_bytes(b"text\ncaf\xe9\n")
    assert read_rows("b.csv", "CSV", "latin-1", tmp_path)[0].fields == {"text": "café"}
    (tmp_path / "c.jsonl").write_text('{"text": "a\u2028b"}\n')
    assert read_rows("c.jsonl", "JSONL", "utf-8", tmp_path)[0].fields == {"text": "a\u2028b"}
    (tmp_path / "d.txt").write_text("one\r\n\ntwo")
    assert [row.fields["text"] for row in read_rows("d.txt", "Text", "utf-8", tmp_path)] == ["one", "two"]


def test_places_are_found_or_refused(tmp_path: Path) -> None:
    """Paths, file:// and package:// lead to a path; unknown schemes, packages and encodings are refused by name."""
    assert locate("a/b.csv", tmp_path) == tmp_path / "a/b.csv"
    assert locate("file:///data/b.csv", tmp_path) == Path("/data/b.csv")
    assert locate("package://orchestrator/spec/models.py", tmp_path).is_file()
    for uri in ("s3://bucket/x.csv", "package://no_such_package_here/x.csv", "package://../x"):
        with pytest.raises(WorkerFailed, match="DataInvalid"):
            locate(uri, tmp_path)
    (tmp_path / "a.csv").write_text("text\n")
    for name, encoding in (("a.csv", "utf-9"), ("missing.csv", "utf-8")):
        with pytest.raises(WorkerFailed, match="DataInvalid"):
            read_rows(name, "CSV", encoding, tmp_path)
