"""What ``moecast trace`` prints: the same facts as tables for people and as JSON for machines.

Names and notes come from files of unknown origin: they are printed as plain text, without markup or
control characters.
"""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from moecast.units import format_bytes

if TYPE_CHECKING:
    from moecast.traces import TraceInfo


def info_json(info: TraceInfo) -> dict[str, Any]:
    """The facts of `trace info`; what is not known is null."""
    facts = dataclasses.asdict(info)
    return {**facts.pop("meta"), **facts}


def info_table(name: str, info: TraceInfo, digest: str | None) -> Table:
    """Sizes and provenance."""
    meta = info.meta
    shown = table(name, "", "")
    rows = {
        "model": meta.model,
        "MoE layers · experts · choices": f"{meta.layers} · {meta.experts} · {meta.choices}",
        "layer ids": _ranges(meta.layer_ids) if meta.layer_ids else "not recorded",
        "tokens": f"{info.tokens:,} in {info.sequences:,} sequences",
        "steps": "not recorded" if info.steps is None else f"{info.steps:,}",
        "source ranks": "not recorded" if info.source_ranks is None else f"{info.source_ranks:,}",
        "optional columns": ", ".join(info.columns) or "none",
        "config.json": "included" if meta.config else "not included",
        "size": f"{format_bytes(info.file_bytes)} on disk, choices {format_bytes(info.choice_bytes)} in memory",
        "shards": _shards(info),
        **{f"source: {key}": _value(value) for key, value in meta.source.items()},
        "notes": meta.notes or "none",
    }
    if digest is not None:
        rows["content hash"] = digest
    for label, value in rows.items():
        shown.add_row(plain_text(label), plain_text(value))
    return shown


def parts_table(info: TraceInfo) -> Table:
    """Tokens and sequences by phase and topic."""
    shown = table("phases and topics", "phase", "topic", "tokens", "sequences", right=(2, 3))
    for part in info.parts:
        topic = "not recorded" if part.topic is None else part.topic
        shown.add_row(part.phase, plain_text(topic), f"{part.tokens:,}", f"{part.sequences:,}")
    return shown


def table(title: str, *heads: str, right: Any = ()) -> Table:
    """An empty table with a title; the columns of `right` are set to the right."""
    shown = Table(
        title=plain_text(title),
        title_justify="left",
        title_style="bold",
        show_header=any(heads),
        header_style="bold",
        min_width=64,  # the title wraps at the table's width
    )
    for index, head in enumerate(heads):
        shown.add_column(head, justify="right" if index in right else "left", overflow="fold")
    return shown


def _shards(info: TraceInfo) -> str:
    text = "1 file" if info.shards == 1 else f"{info.shards} files"
    if info.unfinished_shards:
        text += f"; {info.unfinished_shards} more left unfinished by a writer that was killed, not read"
    return text


def _ranges(ids: tuple[int, ...]) -> str:
    parts: list[list[int]] = []
    for layer in ids:
        if parts and layer == parts[-1][-1] + 1:
            parts[-1].append(layer)
        else:
            parts.append([layer])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}–{part[-1]}" for part in parts)


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def plain_text(text: str) -> Text:
    """Text from a file of unknown origin, without markup or control characters."""
    return Text("".join(letter if letter.isprintable() else " " for letter in text))
