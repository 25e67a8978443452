"""What commands print of a load table: the same facts as a table for people and as JSON for machines.

Names and notes come from files of unknown origin: they are printed as plain text, without markup or
control characters.
"""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from moecast.units import format_count

if TYPE_CHECKING:
    from moecast.traces import LoadTable


def load_json(table: LoadTable) -> dict[str, Any]:
    """The facts of a load table."""
    return {"kind": "load table", **dataclasses.asdict(table.meta), "counted": int(table.load_LE.sum())}


def load_view(name: str, table: LoadTable) -> Table:
    """Sizes, how much was counted, and provenance."""
    meta = table.meta
    view = Table(title=plain(name), title_justify="left", title_style="bold", show_header=False, min_width=64)
    rows = {
        "model": meta.model,
        "kind": "load table: counts only",
        "MoE layers · experts · choices": f"{meta.layers} · {meta.experts} · {meta.choices}",
        "layer ids": ", ".join(map(str, meta.layer_ids)) if meta.layer_ids else "not recorded",
        "choices counted": format_count(int(table.load_LE.sum())),
        "config.json": "included" if meta.config else "not included",
        **{f"source: {key}": value if type(value) is str else json.dumps(value) for key, value in meta.source.items()},
        "notes": meta.notes or "none",
    }
    for label, text in rows.items():
        view.add_row(plain(label), plain(text))
    return view


def plain(text: str) -> Text:
    """Text without markup or control characters."""
    return Text("".join(letter if letter.isprintable() else " " for letter in text))
