"""From rows to clean, split, labelled samples, with every row accounted for. Pure: rows in, samples and counts out.

Order of the rules: filter, columns and types, empty texts, duplicates, label conflicts, split, leakage, limits, labels.
Two texts are "the same" for duplicates, conflicts and leakage by their normal form: lower-case letters and digits, single
spaces. Public text sets overlap so much that a test score without the leakage rule is easily worthless.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.spec.models import Data
from orchestrator.training.errors import data_invalid
from orchestrator.training.order import epoch_order
from orchestrator.training.sources import Row

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class Sample:
    text: str
    label: str | None
    """None for causal-lm."""
    line: int


@dataclass(frozen=True, slots=True)
class Dataset:
    splits: dict[str, list[Sample]]
    labels: tuple[str, ...]
    """In the order of the model's outputs; empty for causal-lm."""
    counts: dict[str, Any]
    """What was read, dropped and kept, for the `data` event."""


def normal_form(text: str) -> str:
    """Lower-case letters and digits of a text, words separated by single spaces."""
    return " ".join("".join(c if c.isalnum() else " " for c in text.lower()).split())


def build(files: dict[str, list[Row]], data: Data, *, labelled: bool) -> Dataset:
    """The samples of a job. `files` has the rows of `source`, or of each split. Raises DataInvalid.

    `counts` adds up: read = filtered_out + empty + duplicates + conflicts + leaked + unused + the splits' sizes.
    """
    counts: dict[str, Any] = {"read": sum(map(len, files.values()))}
    groups = {name: _samples(name, rows, data, counts, labelled=labelled) for name, rows in files.items()}
    groups = {name: _deduplicate(samples, data, counts, labelled=labelled) for name, samples in groups.items()}
    if "source" in groups:
        splits = _split(groups["source"], data, counts, labelled=labelled)
    else:
        splits = {name: groups.get(name, []) for name in SPLITS}
    splits = _leakage(splits, data, counts)
    for name in SPLITS:
        limit = getattr(data.limit, name)
        if limit is not None and len(splits[name]) > limit:
            counts["unused"] = counts.get("unused", 0) + len(splits[name]) - limit
            splits[name] = [splits[name][i] for i in sorted(epoch_order(len(splits[name]), data.seed, 0)[:limit])]
    if not splits["train"]:
        raise data_invalid(
            f"no samples to train on: {', '.join(f'{key} {value}' for key, value in counts.items())}",
            "check data.filter, data.columns and data.splits",
        )
    labels = _labels(splits, data) if labelled else ()
    for name in SPLITS:
        counts[name] = len(splits[name])
        if labelled:
            counts[f"{name}_labels"] = {label: sum(s.label == label for s in splits[name]) for label in labels}
    return Dataset(splits, labels, counts)


def _samples(name: str, rows: Sequence[Row], data: Data, counts: dict[str, Any], *, labelled: bool) -> list[Sample]:
    text_column, label_column = data.columns.text, data.columns.label
    if not rows:
        raise data_invalid(f"data.{name} holds no rows")
    needed = [text_column, *([label_column] if labelled else []), *(rule.column for rule in data.filter)]
    for column in needed:
        if column not in rows[0].fields:
            raise data_invalid(
                f"data.{name} has no column {column!r}; it has {', '.join(map(repr, rows[0].fields))}",
                "set data.columns or data.filter",
            )
    kept = rows
    for rule in data.filter:
        wanted = {_as_text(value) for value in rule.equals}
        kept = [row for row in kept if _as_text(row.fields.get(rule.column)) in wanted]
    counts["filtered_out"] = counts.get("filtered_out", 0) + len(rows) - len(kept)
    if not kept:
        rules = ", ".join(f"{rule.column} in {[_as_text(value) for value in rule.equals]}" for rule in data.filter)
        raise data_invalid(
            f"none of the {len(rows)} rows of data.{name} passes the filter {rules}", "check data.filter"
        )
    samples, empty = [], 0
    for row in kept:
        text = row.fields.get(text_column)
        if text is None or (isinstance(text, str) and not text.strip()):
            if not data.cleaning.drop_empty:
                raise data_invalid(
                    f"data.{name}, line {row.line}: the text is empty", "set data.cleaning.dropEmpty: true"
                )
            empty += 1
            continue
        if not isinstance(text, str):
            raise data_invalid(
                f"data.{name}, line {row.line}: the text is {type(text).__name__}, not a string: {text!r:.60}"
            )
        label = None
        if labelled:
            label = _as_text(row.fields.get(label_column)).strip()
            if not label:
                raise data_invalid(
                    f"data.{name}, line {row.line}: the label is missing", "label the row or filter it out"
                )
        samples.append(Sample(text, label, row.line))
    counts["empty"] = counts.get("empty", 0) + empty
    return samples


def _as_text(value: Any) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case _:
            return str(value)


def _deduplicate(samples: list[Sample], data: Data, counts: dict[str, Any], *, labelled: bool) -> list[Sample]:
    """Conflicts first (all copies of a text with several labels go), then repeats (the first copy stays)."""
    rules = data.cleaning
    if labelled:
        labels = defaultdict(set)
        for sample in samples:
            labels[normal_form(sample.text)].add(sample.label)
        torn = {text for text, found in labels.items() if len(found) > 1}
        conflicting = [sample for sample in samples if normal_form(sample.text) in torn] if torn else []
        counts["conflicting"] = counts.get("conflicting", 0) + len(conflicting)
        if conflicting and rules.label_conflicts == "Fail":
            raise data_invalid(
                f"{len(conflicting)} rows have equal texts and different labels, first at line {conflicting[0].line}: "
                f"{conflicting[0].text!r:.80}",
                "correct them or set data.cleaning.labelConflicts: Drop",
            )
        if rules.label_conflicts == "Drop":
            samples = [sample for sample in samples if normal_form(sample.text) not in torn]
            counts["conflicts"] = counts.get("conflicts", 0) + len(conflicting)
    if rules.deduplicate != "None":
        first: dict[tuple[str, str | None], Sample] = {}
        for sample in samples:
            text = sample.text if rules.deduplicate == "Exact" else normal_form(sample.text)
            first.setdefault((text, sample.label), sample)
        counts["duplicates"] = counts.get("duplicates", 0) + len(samples) - len(first)
        samples = list(first.values())
    return samples


def _split(samples: list[Sample], data: Data, counts: dict[str, Any], *, labelled: bool) -> dict[str, list[Sample]]:
    """Random, seeded, stratified by label where asked; the file's order is kept inside each split."""
    assert data.splits is not None  # the model fills it in beside `source`
    shares = data.splits.train, data.splits.validation, data.splits.test
    groups: dict[str | None, list[int]] = defaultdict(list)
    for index, sample in enumerate(samples):
        groups[sample.label if labelled and data.splits.stratify else None].append(index)
    chosen: dict[str, list[int]] = {name: [] for name in SPLITS}
    for indices in groups.values():
        order = epoch_order(len(indices), data.seed, 0)
        bound = 0.0
        start = 0
        for name, part in zip(SPLITS, shares, strict=True):
            bound += part
            end = round(min(bound, 1.0) * len(indices))
            chosen[name] += [indices[i] for i in order[start:end]]
            start = end
    counts["unused"] = len(samples) - sum(map(len, chosen.values()))
    return {name: [samples[i] for i in sorted(indices)] for name, indices in chosen.items()}


def _leakage(splits: dict[str, list[Sample]], data: Data, counts: dict[str, Any]) -> dict[str, list[Sample]]:
    known = {normal_form(sample.text) for sample in splits["train"]}
    leaked = {name: [s for s in splits[name] if normal_form(s.text) in known] for name in SPLITS[1:]}
    counts["leakage"] = {name: len(found) for name, found in leaked.items()}
    if not any(leaked.values()) or data.cleaning.leakage == "Allow":
        return splits
    if data.cleaning.leakage == "Fail":
        name = next(name for name, found in leaked.items() if found)
        raise data_invalid(
            f"{sum(map(len, leaked.values()))} samples of validation or test also stand in train, "
            f"first in {name}, line {leaked[name][0].line}: {leaked[name][0].text!r:.80}",
            "set data.cleaning.deduplicate: Normalized, or data.cleaning.leakage: Drop",
        )
    counts["leaked"] = sum(map(len, leaked.values()))
    gone = {name: set(found) for name, found in leaked.items()}
    return {name: [s for s in samples if s not in gone.get(name, set())] for name, samples in splits.items()}


def _labels(splits: dict[str, list[Sample]], data: Data) -> tuple[str, ...]:
    found = {sample.label for sample in splits["train"] if sample.label is not None}
    if data.labels is not None:
        labels = tuple(data.labels)
    else:
        numbers = all(label.lstrip("-").isdigit() for label in found)
        labels = tuple(
            sorted(found, key=(lambda label: (int(label), label)) if numbers else (lambda label: (0, label)))
        )
    if len(found) < 2:
        raise data_invalid(
            f"train has a single class, {next(iter(found))!r}: there is nothing to tell apart",
            "check data.filter and data.columns.label",
        )
    for name in SPLITS:
        stranger = next((sample for sample in splits[name] if sample.label not in labels), None)
        if stranger is not None:
            where = "data.labels" if data.labels is not None else "train"
            raise data_invalid(
                f"data.{name}, line {stranger.line}: label {stranger.label!r} is not in {where} ({', '.join(labels)})",
                "correct the row, or list every label in data.labels",
            )
    return labels
