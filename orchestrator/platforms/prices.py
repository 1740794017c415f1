"""Where prices come from: a file of the user's, or the example that ships with orchestrate."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import yaml

from orchestrator.accounting import PriceBook, parse_price_file
from orchestrator.domain.errors import InvalidSpec, Problem

EXAMPLE = "example-prices.yaml"


def load_prices(file: Path | None) -> PriceBook:
    """The price book of `file`, or the shipped example when it is None.

    Raises `InvalidSpec` with every problem of the file: unreadable, not YAML, or not a price file.
    """
    name = str(file) if file is not None else EXAMPLE
    try:
        if file is None:
            text = resources.files("orchestrator.platforms").joinpath(EXAMPLE).read_text(encoding="utf-8")
        else:
            text = file.read_text(encoding="utf-8")
        document = yaml.safe_load(text)
    except FileNotFoundError:
        problem = Problem("", "there is no such file", "set ORCHESTRATE_PRICES to a price file, or unset it", name)
        raise InvalidSpec([problem]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSpec([Problem("", f"cannot be read ({error})", "name a readable text file", name)]) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line, column = (mark.line + 1, mark.column + 1) if mark is not None else (None, None)
        raise InvalidSpec([Problem("", f"is not valid YAML: {error.problem}", None, name, line, column)]) from error
    return parse_price_file(document, name)
