"""Completion scripts for bash, zsh and fish, made from the parsers of all verbs."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

from orchestrator.cli.arguments import Parser
from orchestrator.cli.main import GROUPS, parser_of

FILES, JOBS, NOTHING = "files", "jobs", ""


@dataclass(frozen=True, slots=True)
class Words:
    """What may follow one verb, or one verb and its second word."""

    path: tuple[str, ...]
    flags: dict[str, str]
    """Help by flag."""
    values: dict[str, tuple[str, ...]]
    """By flag that takes a value: the values it may have, or none where anything goes."""
    arguments: tuple[str, ...]
    kind: str
    """What else may stand there: `files`, `jobs` or nothing."""


def all_words() -> Iterator[Words]:
    for verbs in GROUPS.values():
        for verb in verbs:
            parser, _ = parser_of(verb)
            choices = parser.choices()
            yield _words_of((verb,), parser, tuple(choices))
            for word, inner in choices.items():
                yield _words_of((verb, word), inner, ())


def _words_of(path: tuple[str, ...], parser: Parser, following: tuple[str, ...]) -> Words:
    flags: dict[str, str] = {}
    values: dict[str, tuple[str, ...]] = {}
    kind, arguments = NOTHING, following
    for action in parser.shown():
        if isinstance(action, argparse._SubParsersAction):
            continue
        for flag in action.option_strings:
            flags[flag] = (action.help or "").partition(";")[0]
            if action.nargs != 0:
                values[flag] = tuple(map(str, action.choices or ()))
        if not action.option_strings:
            if action.choices:
                arguments = tuple(map(str, action.choices))
            kind = JOBS if action.metavar == "JOB" else FILES if action.metavar == "FILE" else kind
    return Words(path, flags, values, arguments, kind)


def script(shell: str) -> str:
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell]()


_BASH = """\
# bash completion of orchestrate; made by `orchestrate completion bash`
_orchestrate() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" verb="" second="" at
  COMPREPLY=()
  for ((at = 1; at < COMP_CWORD; at++)); do
    case "${{COMP_WORDS[at]}}" in
      -*) ;;
      *) if [ -z "$verb" ]; then verb="${{COMP_WORDS[at]}}"; elif [ -z "$second" ]; then second="${{COMP_WORDS[at]}}"; fi ;;
    esac
  done
  local flags="" values="" arguments="" kind="" takes=""
  if [ -z "$verb" ]; then
    COMPREPLY=($(compgen -W "{verbs} --help --version --debug" -- "$word"))
    return
  fi
  case "$verb $second" in
{cases}
  esac
  case "$before" in
    -*) case " $takes " in *" $before "*)
      if [ -n "$values" ]; then COMPREPLY=($(compgen -W "$values" -- "$word")); else COMPREPLY=($(compgen -f -- "$word")); fi
      return ;;
    esac ;;
  esac
  case "$word" in -*) COMPREPLY=($(compgen -W "$flags" -- "$word")); return ;; esac
  case "$kind" in
    jobs) arguments="$arguments $(orchestrate completion jobs 2>/dev/null)" ;;
    files) COMPREPLY=($(compgen -f -- "$word")); return ;;
  esac
  COMPREPLY=($(compgen -W "$arguments" -- "$word"))
}}
complete -o filenames -F _orchestrate orchestrate
"""


def _bash() -> str:
    # The longer paths go first: `checkpoint list` before `checkpoint *`.
    cases = []
    for words in sorted(all_words(), key=lambda words: -len(words.path)):
        pattern = f'"{" ".join(words.path)}"' if len(words.path) == 2 else f'"{words.path[0]} "*'
        limited = [(flag, values) for flag, values in words.values.items() if values]
        inner = "".join(f' {flag}) values="{" ".join(values)}" ;;' for flag, values in limited)
        cases.append(
            f'    {pattern}) flags="{" ".join(words.flags)}" arguments="{" ".join(words.arguments)}" kind="{words.kind}"'
            f' takes="{" ".join(words.values)}"' + (f'; case "$before" in{inner} esac' if inner else "") + " ;;"
        )
    verbs = " ".join(verb for verbs in GROUPS.values() for verb in verbs)
    return _BASH.format(verbs=verbs, cases="\n".join(cases))


_ZSH = """\
#compdef orchestrate
# zsh completion of orchestrate; made by `orchestrate completion zsh`
_orchestrate() {{
  local verb="" second="" at
  for ((at = 2; at < CURRENT; at++)); do
    case "${{words[at]}}" in
      -*) ;;
      *) if [[ -z "$verb" ]]; then verb="${{words[at]}}"; elif [[ -z "$second" ]]; then second="${{words[at]}}"; fi ;;
    esac
  done
  local -a verbs flags arguments limited
  local kind="" takes="" before="${{words[CURRENT-1]}}"
  verbs=({verbs})
  if [[ -z "$verb" ]]; then _describe verb verbs; return; fi
  case "$verb $second" in
{cases}
  esac
  if [[ "$before" == -* && " $takes " == *" $before "* ]]; then
    if (( ${{#limited}} )); then compadd -a limited; else _files; fi
    return
  fi
  if [[ "${{words[CURRENT]}}" == -* ]]; then _describe flag flags; return; fi
  [[ "$kind" == jobs ]] && arguments+=(${{(f)"$(orchestrate completion jobs 2>/dev/null)"}})
  [[ "$kind" == files ]] && _files
  (( ${{#arguments}} )) && compadd -a arguments
}}
compdef _orchestrate orchestrate
"""


def _zsh() -> str:
    cases = []
    for words in sorted(all_words(), key=lambda words: -len(words.path)):
        pattern = f'"{" ".join(words.path)}"' if len(words.path) == 2 else f'"{words.path[0]} "*'
        flags = " ".join(_quoted(f"{flag}:{text}" if text else flag) for flag, text in words.flags.items())
        limited = [(flag, values) for flag, values in words.values.items() if values]
        inner = "".join(f" {flag}) limited=({' '.join(values)}) ;;" for flag, values in limited)
        cases.append(
            f'    {pattern}) flags=({flags}) arguments=({" ".join(words.arguments)}) kind="{words.kind}"'
            f' takes="{" ".join(words.values)}"' + (f'; case "$before" in{inner} esac' if inner else "") + " ;;"
        )
    verbs = " ".join(_quoted(f"{verb}:{text}") for verbs in GROUPS.values() for verb, text in verbs.items())
    return _ZSH.format(verbs=verbs, cases="\n".join(cases))


def _fish() -> str:
    lines = [
        "# fish completion of orchestrate; made by `orchestrate completion fish`",
        "complete -c orchestrate -f",
        "complete -c orchestrate -n __fish_use_subcommand -l help -s h -d 'explain'",
    ]
    for verbs in GROUPS.values():
        lines += [
            f"complete -c orchestrate -n __fish_use_subcommand -a {verb} -d {_quoted(text)}"
            for verb, text in verbs.items()
        ]
    for words in all_words():
        seen = "; and ".join(f"__fish_seen_subcommand_from {word}" for word in words.path)
        when = f"complete -c orchestrate -n {_quoted(seen)}"
        if words.arguments:
            lines.append(f"{when} -a {_quoted(' '.join(words.arguments))}")
        if words.kind == JOBS:
            lines.append(f"{when} -a '(orchestrate completion jobs 2>/dev/null)'")
        elif words.kind == FILES:
            lines.append(f"{when} -F")
        for flag, text in words.flags.items():
            option = f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}"
            values = words.values.get(flag)
            after = "" if values is None else f" -x -a {_quoted(' '.join(values))}" if values else " -r"
            lines.append(f"{when} {option}{after} -d {_quoted(text)}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """For all three shells: in single quotes, without any inside."""
    return "'" + text.replace("'", "") + "'"
