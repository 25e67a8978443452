"""What `moecast plan --out` wrote, as the page that `--report` would have drawn."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moecast.errors import MoecastError
from moecast.files import read_json, write_text


def is_saved_plan(path: str | Path) -> bool:
    """Whether a file holds what `moecast plan` found."""
    from moecast.placement.layouts.told import KIND

    value = read_json(path)
    return isinstance(value, dict) and value.get("kind") == KIND


def write_saved_plan_page(source: str | Path, path: str | Path) -> None:
    """Write the page of a search that was saved as JSON, whole or not at all.

    Raises
    ------
    MoecastError
        A field is missing, or of another kind than it was written.
    """
    value = read_json(source)
    try:
        text = _page(value)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        rule = f"is not as `moecast plan` writes it: {type(error).__name__} {error}"
        raise MoecastError(rule, file=source) from error
    write_text(path, text)


def _page(value: Mapping[str, Any]) -> str:
    from moecast.cli import plan_training_text, planning
    from moecast.report import plan_page

    told = plan_training_text if value["for"] == "training" else planning
    return plan_page.render(value, told.winner_rows(dict(value)))
