"""Job files to start from, for `orchestrate init`: the YAML files of this folder, each valid as it stands."""

from __future__ import annotations

from importlib.resources import files


def templates() -> dict[str, str]:
    """Name of each template and its text, in the order of their names."""
    folder = files(__name__)
    found = {
        item.name.removesuffix(".yaml"): item.read_text(encoding="utf-8")
        for item in folder.iterdir()
        if item.name.endswith(".yaml")
    }
    return dict(sorted(found.items()))
