"""Reading YAML (and JSON) with the place of every key and value.

Why an own reader on the parser's events: PyYAML builds values by the rules of YAML 1.1, where `on` is true, `012` is
ten and `1:30` is ninety; it forgets where values stood, takes the last of two equal keys and stops at nothing when
aliases multiply. Here plain scalars follow the core schema of YAML 1.2 (JSON with `0o17`, `.inf` and comments), and
spellings that two readers would read differently stay texts, so that a field that wants a number refuses them.

Limits: one document, 1 MiB of text, 64 levels, 20,000 values after aliases are written out; no tags but those of the
core schema; no merge keys. JSON is read by the same rules; tabs between its tokens are fine.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from orchestrator.domain.errors import Problem
from orchestrator.spec.values import shown

Path = tuple[str | int, ...]

LARGEST_FILE_BYTES = 1 << 20
DEEPEST = 64
MOST_VALUES = 20_000

_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_BOOLS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = re.compile(r"[-+]?(0|[1-9][0-9]{0,40})")
_OCTAL = re.compile(r"0o[0-7]{1,40}")
_HEX = re.compile(r"0x[0-9a-fA-F]{1,40}")
_FLOAT = re.compile(r"(?=.*[.eE])[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SPECIAL = re.compile(r"([-+]?\.(?:inf|Inf|INF))|(\.(?:nan|NaN|NAN))")
_CORE = "tag:yaml.org,2002:"
_SCALAR_TAGS = frozenset({f"{_CORE}{name}" for name in ("str", "int", "float", "bool", "null")})


@dataclass(frozen=True, slots=True)
class Place:
    """Where something stands; line and column count from 1."""

    file: str | None
    line: int | None = None
    column: int | None = None


@dataclass(slots=True)
class Document:
    """A file's value, the place of each part of it, and what was wrong with it as YAML."""

    value: Any
    file: str | None
    places: dict[Path, Place] = field(default_factory=dict)
    """For each path: where its key stands (for an item of a list, where the item begins)."""
    problems: list[tuple[Path, Problem]] = field(default_factory=list)
    """Problems that did not stop the reading, with the path of the value that they make worthless."""

    def place(self, path: Path) -> Place:
        """The place of `path`, or of the nearest part around it that was written."""
        for length in range(len(path), -1, -1):
            if (found := self.places.get(path[:length])) is not None:
                return found
        return Place(self.file, 1, 1)

    def problem(self, path: Path, what: str, hint: str | None = None) -> Problem:
        place = self.place(path)
        return Problem(dotted(path), what, hint, place.file, place.line, place.column)


def dotted(path: Path) -> str:
    """`spec.runtime.env[0].name`; a key that holds a dot or a slash stands in brackets: `metadata.labels["a/b"]`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif re.fullmatch(r"[\w-]+", part):
            text += f".{part}" if text else part
        else:
            text += f"[{shown(part)}]"
    return text


class Unreadable(Exception):
    """The text is not a document at all; carries the one problem that can be told."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


def decode(raw: bytes, file: str | None) -> str:
    """Text of a file. Raises Unreadable when it is too large or not UTF-8."""
    if len(raw) > LARGEST_FILE_BYTES:
        what = f"the file has {len(raw):,} bytes, more than {LARGEST_FILE_BYTES:,}"
        raise Unreadable(Problem("", what, "a job file is a few lines; was this the data file?", file))
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise Unreadable(Problem("", "the file is UTF-16 text", "save it as UTF-8", file, 1, 1))
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = raw[: error.start]
        line = before.count(b"\n") + 1
        column = len(before[before.rfind(b"\n") + 1 :].decode("utf-8", "replace")) + 1
        what = f"byte 0x{raw[error.start]:02x} is not UTF-8 text"
        raise Unreadable(Problem("", what, "save the file as UTF-8", file, line, column)) from error


def read_document(text: str, file: str | None) -> Document:
    """The value of a YAML or JSON text with its places. Raises Unreadable when the text cannot be parsed."""
    looks_like_json = text.lstrip()[:1] == "{"
    if looks_like_json:
        text = text.replace("\t", " ")
    try:
        fast = getattr(yaml, "CSafeLoader", None)
        loader = yaml.SafeLoader if fast is None or looks_like_json else fast
        return _Reader(file).read(yaml.parse(text, Loader=loader))
    except yaml.YAMLError as first:
        raise Unreadable(_explain(text, file, first)) from first


@dataclass(slots=True, eq=False)
class _Node:
    """One node of the text, before aliases are written out."""

    place: Place
    scalar: Any = None
    items: list[_Node] | None = None
    pairs: list[tuple[str, Place, _Node]] | None = None


class _Reader:
    def __init__(self, file: str | None) -> None:
        self._file = file
        self._anchors: dict[str, _Node] = {}
        self._faults: list[tuple[_Node, str, str, Place]] = []
        self._count = 0
        self._document = Document(None, file)

    def read(self, events: Iterator[Any]) -> Document:
        root: _Node | None = None
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                self._anchors.clear()
                if root is not None:
                    place = self._at(event)
                    what = "a second document begins here"
                    raise Unreadable(
                        Problem(
                            "",
                            what,
                            "keep one job to a file and remove the line ---",
                            place.file,
                            place.line,
                            place.column,
                        )
                    )
                root = self._node(next(events), events, 1)
        if root is None or (root.scalar is None and root.items is None and root.pairs is None):
            hint = "write a TrainingJob; `orchestrate init` makes one to start from"
            raise Unreadable(Problem("", "the file is empty", hint, self._file, 1, 1))
        self._document.value = self._expand(root, (), [])
        return self._document

    def _at(self, event: Any) -> Place:
        return Place(self._file, event.start_mark.line + 1, event.start_mark.column + 1)

    def _stop(self, place: Place, what: str, hint: str) -> Unreadable:
        return Unreadable(Problem("", what, hint, place.file, place.line, place.column))

    def _node(self, event: Any, events: Iterator[Any], depth: int) -> _Node:
        place = self._at(event)
        if depth > DEEPEST:
            raise self._stop(place, f"more than {DEEPEST} levels of nesting", "a job file needs about six")
        if isinstance(event, yaml.AliasEvent):
            target = self._anchors.get(str(event.anchor))
            if target is None:
                hint = f"define it first with &{event.anchor}, or quote the text if the * is meant"
                raise self._stop(place, f"*{event.anchor} refers to nothing above", hint)
            return target
        node = _Node(place)
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        if isinstance(event, yaml.ScalarEvent):
            node.scalar = self._scalar(event, node)
        elif isinstance(event, yaml.SequenceStartEvent):
            self._check_tag(event, node, "seq")
            node.items = []
            while not isinstance(item := next(events), yaml.SequenceEndEvent):
                node.items.append(self._node(item, events, depth + 1))
        else:
            self._check_tag(event, node, "map")
            node.pairs = []
            while not isinstance(key := next(events), yaml.MappingEndEvent):
                self._pair(key, events, node, depth)
        return node

    def _pair(self, key: Any, events: Iterator[Any], parent: _Node, depth: int) -> None:
        place = self._at(key)
        key_node = self._node(key, events, depth + 1)
        value = self._node(next(events), events, depth + 1)
        assert parent.pairs is not None
        if key_node.items is not None or key_node.pairs is not None:
            hint = "write a name; a text that begins with { or [ must be quoted"
            self._fault(parent, "a key is a list or a mapping", hint, place)
        elif not isinstance(key_node.scalar, str):
            written = shown(key_node.scalar)
            self._fault(
                parent, f"the key {written} is not a text", f'write "{written}" in quotes if it is meant', place
            )
        elif key_node.scalar == "<<" and isinstance(key, yaml.ScalarEvent) and not key.style:
            self._fault(
                parent, "merge keys (<<) are not supported", "write the fields out; aliases of whole values work", place
            )
        else:
            parent.pairs.append((key_node.scalar, place, value))

    def _fault(self, node: _Node, what: str, hint: str, place: Place) -> None:
        self._faults.append((node, what, hint, place))

    def _check_tag(self, event: Any, node: _Node, name: str) -> None:
        if event.tag not in (None, "!", f"{_CORE}{name}"):
            self._fault(
                node,
                f"the tag {_written(event.tag)} is not supported",
                "remove it and write the value itself",
                node.place,
            )

    def _scalar(self, event: Any, node: _Node) -> Any:
        text: str = event.value
        if event.style:
            text = _joined_surrogates(text)
            if any("\ud800" <= letter <= "\udfff" for letter in text):
                self._fault(
                    node, "the text holds half a character (a lone surrogate)", "write the character itself", node.place
                )
                return None
        if event.tag not in (None, "!"):
            if event.tag not in _SCALAR_TAGS:
                self._fault(
                    node,
                    f"the tag {_written(event.tag)} is not supported",
                    "remove it and write the value itself",
                    node.place,
                )
                return None
            value = text if event.tag == f"{_CORE}str" else resolve(text)
            wanted = event.tag[len(_CORE) :]
            fits: dict[str, tuple[type, ...]] = {
                "str": (str,),
                "int": (int,),
                "float": (int, float),
                "bool": (bool,),
                "null": (type(None),),
            }
            if not isinstance(value, fits[wanted]) or (wanted in ("int", "float") and isinstance(value, bool)):
                self._fault(node, f"{shown(text)} is not what its tag !!{wanted} says", "remove the tag", node.place)
                return None
            return float(str(value)) if wanted == "float" else value
        return text if event.style or event.tag == "!" else resolve(text)

    def _expand(self, node: _Node, path: Path, within: list[_Node]) -> Any:
        self._count += 1
        if self._count > MOST_VALUES:
            raise self._stop(
                node.place, f"more than {MOST_VALUES:,} values once aliases are written out", "use fewer aliases"
            )
        if any(node is outer for outer in within):
            raise self._stop(node.place, "an alias refers to the value that it stands in", "write the value out")
        self._document.places.setdefault(path, node.place)
        for owner, what, hint, place in self._faults:
            if owner is node:
                problem = Problem(dotted(path), what, hint, place.file, place.line, place.column)
                self._document.problems.append((path, problem))
        if node.items is not None:
            return [self._expand(item, (*path, index), [*within, node]) for index, item in enumerate(node.items)]
        if node.pairs is None:
            return node.scalar
        result: dict[str, Any] = {}
        for key, place, item in node.pairs:
            inner = (*path, key)
            if key in result:
                first = self._document.places[inner]
                what = f"{shown(key)} is given twice; the first is on line {first.line}"
                problem = Problem(dotted(inner), what, "keep one of them", place.file, place.line, place.column)
                self._document.problems.append((inner, problem))
                continue
            self._document.places[inner] = place
            result[key] = self._expand(item, inner, [*within, node])
        return result


def resolve(text: str) -> Any:
    """The value of a plain scalar by the core schema of YAML 1.2; numbers with a leading zero stay texts."""
    if text in _NULLS:
        return None
    if text in _BOOLS:
        return _BOOLS[text]
    if text[0] not in "+-.0123456789":
        return text
    if _INT.fullmatch(text):
        return int(text)
    if _OCTAL.fullmatch(text):
        return int(text, 8)
    if _HEX.fullmatch(text):
        return int(text, 16)
    if _FLOAT.fullmatch(text):
        return float(text)
    if special := _SPECIAL.fullmatch(text):
        return float("nan") if special[2] else float(text.replace(".", "", 1))
    return text


def _written(tag: str) -> str:
    return f"!!{tag[len(_CORE) :]}" if tag.startswith(_CORE) else tag


def _joined_surrogates(text: str) -> str:
    """JSON writes a character beyond U+FFFF as two escapes; the parser leaves them as two halves."""
    if not any("\ud800" <= letter <= "\udbff" for letter in text):
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


def _explain(text: str, file: str | None, first: yaml.YAMLError) -> Problem:
    """The parser's error in plain words. The slower parser is asked again: its words and places are always the same."""
    error: yaml.YAMLError = first
    try:
        for _ in yaml.parse(text, Loader=yaml.SafeLoader):
            pass
    except yaml.YAMLError as again:
        error = again
    lines = text.splitlines() or [""]
    if isinstance(error, yaml.reader.ReaderError):
        before = text[: error.position]
        line, column = before.count("\n") + 1, error.position - (before.rfind("\n") + 1) + 1
        what = f"the character U+{_code_point(error.character):04X} may not stand in a job file"
        return Problem("", what, "remove it, or write it as an escape in double quotes", file, line, column)
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is None:
        return Problem("", "the file is not YAML", "compare it with a file of `orchestrate init`", file, 1, 1)
    line, column = mark.line + 1, mark.column + 1
    words = f"{getattr(error, 'context', None) or ''} {getattr(error, 'problem', None) or ''}"
    start = getattr(error, "context_mark", None) or mark
    what, hint, at_start = _in_plain_words(words, lines, mark.line, start.line)
    if at_start:
        line, column = start.line + 1, start.column + 1
    directive = next((number for number, written in enumerate(lines[: mark.line + 1]) if written.startswith("%")), None)
    if "<document start>" in words and directive is not None:
        line, column = directive + 1, 1
        what, hint = "a line that begins with % is a directive of YAML", "remove it, or quote the text"
    tabbed = next((number for number in (mark.line, mark.line - 1) if _leading_tab(lines, number)), None)
    if tabbed is not None:
        line, column = tabbed + 1, lines[tabbed].index("\t") + 1
        what, hint = "a tab is used to indent", "indent with spaces, two for each level"
    return Problem("", what, hint, file, line, column)


def _code_point(character: int | str | bytes) -> int:
    return character if isinstance(character, int) else ord(character)


def _leading_tab(lines: list[str], number: int) -> bool:
    if not 0 <= number < len(lines):
        return False
    line = lines[number]
    return "\t" in line[: len(line) - len(line.lstrip())]


def _in_plain_words(words: str, lines: list[str], at: int, start: int) -> tuple[str, str, bool]:
    """What is wrong, what to do, and whether the place of interest is where the construct began."""
    line = lines[at] if at < len(lines) else ""
    if "mapping values are not allowed" in words:
        before = line.split(":")[0].strip()
        if line.count(": ") > 1 or (": " in line and line.rstrip().endswith(":")):
            return (
                "a second ': ' on one line",
                f"quote the text after {before}:, or put the field on its own line",
                False,
            )
        return (
            "a ':' where no field can begin",
            "check the indentation of this line and that the line above is complete",
            False,
        )
    if "found character '\\t'" in words:
        return "a tab stands where a value should begin", "use spaces", False
    if "could not find expected ':'" in words:
        return "a line without ':'", "write name: value (with a space after the colon)", True
    if "while scanning a quoted scalar" in words:
        return "a quoted text has no end", "close the quotes", True
    if "escape" in words:
        return "an unknown escape in a double-quoted text", "write \\\\ for a backslash, or use single quotes", False
    if "while parsing a flow sequence" in words:
        return "a list that begins with [ has no end", "close it with ] and put commas between the items", True
    if "while parsing a flow mapping" in words:
        return "a mapping that begins with { has no end", "close it with } and put commas between the fields", True
    if "sequence entries are not allowed" in words:
        return "a list item where none can begin", "put the items on their own lines below the field's name", False
    if "while parsing a block collection" in words:
        return (
            "a line that does not belong to the list above it",
            "begin every item with '- ', all in one column",
            False,
        )
    if "while parsing a block mapping" in words:
        found = line.strip()
        if found.startswith("- "):
            hint = "put all items of a list in one column, below the field that they belong to"
            return "a list item where no item can begin", hint, False
        return "a line that fits no level above it", "indent it like the other fields of its section", False
    if "cannot start any token" in words:
        letter = (
            line[len(line) - len(line.lstrip()) :][:1] if "'" not in words else words.rpartition("character ")[2][:3]
        )
        return f"a text cannot begin with {letter.split(' that')[0]}", "put the text in quotes", False
    if "found undefined tag handle" in words or "tag" in words:
        return "a tag that YAML does not know", "remove it and write the value itself", False
    if "alias" in words or "anchor" in words:
        return "an anchor (&) or alias (*) without a proper name", "quote the text if the & or * is meant", False
    if "expected '<document start>'" in words:
        return "text after the end of the document", "indent it into the section that it belongs to", False
    if "block scalar" in words:
        return "a text block (| or >) is written wrongly", "put the text on the following lines, indented", False
    return "the text is not YAML here", "check the indentation and the quotes around this place", start != at and False
