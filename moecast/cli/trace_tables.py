"""What ``moecast trace`` prints: the same facts as tables for people and as JSON for machines.

Names and notes come from files of unknown origin: they are printed as plain text, without markup or control characters.
"""

from __future__ import annotations

import dataclasses
import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table
from rich.text import Text

from moecast.units import format_bytes, format_count

if TYPE_CHECKING:
    from moecast.traces import TraceInfo, TraceMeta, TraceStats


def info_json(info: TraceInfo) -> dict[str, Any]:
    """The facts of `trace info`; what is not known is null."""
    facts = dataclasses.asdict(info)
    return {**facts.pop("meta"), **facts}


def info_table(name: str, info: TraceInfo, digest: str | None) -> Table:
    """Sizes and provenance."""
    meta = info.meta
    table = _table(name, "", "")
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
        table.add_row(_plain(label), _plain(value))
    return table


def parts_table(info: TraceInfo) -> Table:
    """Tokens and sequences by phase and topic."""
    table = _table("phases and topics", "phase", "topic", "tokens", "sequences", right=(2, 3))
    for part in info.parts:
        topic = "not recorded" if part.topic is None else part.topic
        table.add_row(part.phase, _plain(topic), f"{part.tokens:,}", f"{part.sequences:,}")
    return table


def stats_json(meta: TraceMeta, stats: TraceStats, ranks: int) -> dict[str, Any]:
    """The numbers of `trace stats`; null where there is nothing to divide by."""
    return {
        "model": meta.model,
        "tokens": stats.tokens,
        "layers": meta.layers,
        "experts": meta.experts,
        "choices": meta.choices,
        "ranks": ranks,
        "placement": "contiguous",
        "balance_pooled": _number(stats.balance_pooled),
        "gini": _number(stats.gini),
        "fan_out": _number(stats.fan_out),
        "crossings": _number(stats.crossings),
        "per_layer": [
            {name: _number(value) for name, value in row.items()} | {"load": stats.load_LE[layer].tolist()}
            for layer, row in enumerate(_per_layer(meta, stats))
        ],
    }


def stats_table(meta: TraceMeta, stats: TraceStats, ranks: int) -> Table:
    """The numbers of the whole trace."""
    table = _table(f"{meta.experts} experts in order on {ranks} ranks, all tokens as one step", "", "")
    table.add_row("tokens", f"{stats.tokens:,}")
    table.add_row("choices", format_count(int(stats.load_LE.sum())))
    table.add_row("balance_pooled", _three(stats.balance_pooled))
    table.add_row("gini", _three(stats.gini))
    table.add_row("fan-out", _three(stats.fan_out))
    table.add_row("crossings", _three(stats.crossings))
    return table


def layers_table(meta: TraceMeta, stats: TraceStats) -> Table:
    """The same by layer, with its most and least loaded experts."""
    heads = (
        "layer",
        "balance_pooled",
        "gini",
        "fan-out",
        "crossings",
        "hottest",
        "load ÷ mean",
        "coldest",
        "load ÷ mean",
    )
    table = _table("by layer", *heads, right=range(len(heads)))
    for row in _per_layer(meta, stats):
        numbers = (_three(row[name]) for name in ("balance_pooled", "gini", "fan_out", "crossings"))
        hot, cold = (f"{row[name + '_load_over_mean']:.2f}" for name in ("hottest", "coldest"))
        table.add_row(str(row["layer"]), *numbers, str(row["hottest"]), hot, str(row["coldest"]), cold)
    return table


def _per_layer(meta: TraceMeta, stats: TraceStats) -> list[dict[str, Any]]:
    balance_L, gini_L, fan_out_L = stats.balance_pooled_L, stats.gini_L, stats.fan_out_L
    crossings_L = [*stats.crossings_L, math.nan]  # from a layer to the next: the last has none
    rows = []
    for index, load_E in enumerate(stats.load_LE):
        hottest, coldest, mean = int(load_E.argmax()), int(load_E.argmin()), load_E.mean() or math.nan
        rows.append(
            {
                "layer": index if meta.layer_ids is None else meta.layer_ids[index],
                "balance_pooled": balance_L[index],
                "gini": gini_L[index],
                "fan_out": fan_out_L[index],
                "crossings": crossings_L[index],
                "hottest": hottest,
                "hottest_load_over_mean": load_E[hottest] / mean,
                "coldest": coldest,
                "coldest_load_over_mean": load_E[coldest] / mean,
            }
        )
    return rows


def _three(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"


def _number(value: Any) -> int | float | None:
    if isinstance(value, (int, np.integer)):
        return int(value)
    return None if math.isnan(value) else float(value)


def _table(title: str, *heads: str, right: Any = ()) -> Table:
    table = Table(
        title=_plain(title),
        title_justify="left",
        title_style="bold",
        show_header=any(heads),
        header_style="bold",
        min_width=64,  # the title wraps at the table's width
    )
    for index, head in enumerate(heads):
        table.add_column(head, justify="right" if index in right else "left", overflow="fold")
    return table


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


def _plain(text: str) -> Text:
    return Text("".join(letter if letter.isprintable() else " " for letter in text))
