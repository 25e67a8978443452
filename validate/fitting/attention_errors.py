"""How far off attention, latent attention, its modules and linear attention are on rows that nobody fitted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from moecast.sim.cost import attention, linear_attention, mla_module, roofline
from moecast.sim.cost.entries import NEUTRAL, Entry
from moecast.sim.cost.gpus import GPUS, nearest
from moecast.sim.cost.shapes import AttentionCore
from moecast.sim.cost.tables.attention import AttentionTable
from moecast.sim.cost.tables.columns import rows_of
from moecast.sim.cost.tables.linear_attention import LinearTable
from moecast.sim.cost.tables.mla_module import MlaModuleTable
from moecast.validate.fitting import attention as attention_fit
from moecast.validate.fitting import linear_attention as linear_fit
from moecast.validate.fitting import mla_module as module_fit
from moecast.validate.fitting.errors import Errors

Float = npt.NDArray[np.float64]
Compared = tuple[Errors, Errors, Errors]
NOTHING = Errors.of(np.zeros(0), np.zeros(0))


def compare_attention(table: AttentionTable, tables: Sequence[AttentionTable] = ()) -> Compared:
    """Errors of the roofline, of the model, and of the model with another GPU's parameters.

    Those of the nearest other GPU; where GPUs of a generation are fitted together (and `tables` are
    given), a new fit on all but this one.
    """
    entries = attention.all_parameters("mla" if table.latent else "attention")
    own, other = own_and_other(entries, table)
    drawn = attention_fit.draw(table, seed=own.seed if own else attention_fit.SEED)
    rest = rows_of(table, attention_fit.unseen(table, drawn))
    lines, model, left_out = _compared(own, other, rest, attention_fit.forecast, _roofline(rest))
    family = attention_fit.family_of(attention_fit.kin(table), tables)
    if others := [some for some in family if some.gpu != table.gpu]:
        without = attention_fit.fit_shared(others)
        left_out = Errors.of(attention_fit.forecast(without, table.gpu, rest), rest.seconds_R)
    return lines, model, left_out


def compare_module(table: MlaModuleTable) -> tuple[Errors, Errors, Errors, str]:
    """As `compare_attention`, and a note.

    The roofline is left out, whose parts are those of other families.

    Another GPU's parameters are those of the module alone: its parts are reckoned for the table's
    GPU as for any.
    """
    own, other = own_and_other(mla_module.all_parameters(), table)
    counted = ~module_fit.draw(table) & module_fit.kernel_rows(table)
    rest = rows_of(table, counted)
    note = f"host-timed: {counted.sum()} of {counted.size} rows" if module_fit.is_host_timed(table) else ""
    return *_compared(own, other, rest, module_fit.forecast, None), note


def compare_linear(table: LinearTable) -> Compared:
    """As `compare_attention`; the roofline moves channels and states once."""
    own, other = own_and_other(linear_attention.all_parameters(), table)
    rest = rows_of(table, ~linear_fit.draw(table))
    moved = rest.batch_R * rest.length_R * rest.channels_R * 4.0
    if table.kind.startswith("state"):
        states = rest.batch_R * rest.heads_R * rest.key_dim_R * rest.value_dim_R
        chunks = np.ceil(rest.length_R / linear_attention.CHUNK) if "prefill" in table.kind else 1.0
        moved = states * 2 * 4.0 * chunks
    lines = roofline.elementwise_seconds(GPUS[table.gpu], moved, row_bytes=1.0)
    return _compared(own, other, rest, linear_fit.forecast, lines)


def own_and_other(entries: Sequence[Entry[Any]], table: Any) -> tuple[Entry[Any] | None, Entry[Any] | None]:
    """The entry of a table's own version, and the newest one that it would get if its GPU had no table."""
    kind = table.kind
    own = [entry for entry in entries if (entry.gpu, entry.engine, entry.kind) == (table.gpu, table.engine, kind)]
    own = [entry for entry in own if entry.version == table.version]
    for engine in (table.engine, NEUTRAL):
        others = {e.gpu: e for e in entries if (e.engine, e.kind) == (engine, kind) and e.gpu != table.gpu}
        try:
            return own[-1] if own else None, others[nearest(table.gpu, set(others))]
        except ValueError:
            continue
    return own[-1] if own else None, None


def _compared(
    own: Entry[Any] | None,
    other: Entry[Any] | None,
    rest: Any,
    forecast: Callable[[Any, str, Any], Float],
    lines: Float | None,
) -> Compared:
    def errors(entry: Entry[Any] | None) -> Errors:
        return NOTHING if entry is None else Errors.of(forecast(entry.parameters, rest.gpu, rest), rest.seconds_R)

    return NOTHING if lines is None else Errors.of(lines, rest.seconds_R), errors(own), errors(other)


def _roofline(table: AttentionTable) -> Float:
    """What `moecast.sim.cost.roofline` says, shape by shape of heads: it takes one at a time."""
    seconds = np.empty(table.seconds_R.size)
    window_R = np.where(table.window_R > 0, table.window_R, np.inf)
    if table.phase == "decode":
        keys_R = table.batch_R * np.minimum(table.keys_R, window_R)
    else:
        full_R = np.minimum(table.tokens_R, window_R)
        keys_R = table.batch_R * (full_R * (full_R + 1) / 2 + (table.tokens_R - full_R) * full_R)
    tokens_R = table.batch_R * table.tokens_R
    shape = np.stack([table.heads_R, table.kv_heads_R, table.head_dim_R], 1)
    for heads, kv_heads, head_dim in np.unique(shape, axis=0):
        same = (shape == (heads, kv_heads, head_dim)).all(1)
        core = AttentionCore(
            latent=table.latent,
            heads=int(heads),
            kv_heads=int(heads if table.latent else kv_heads),
            head_dim=192 if table.latent else int(head_dim),
            value_dim=128 if table.latent else int(head_dim),
            cached_width=320 if table.latent else 2 * int(head_dim),
            kv_rank=512 * table.latent,
            rope_dim=64 * table.latent,
            kv_type=table.types.split("/")[-1],
        )
        seconds[same] = roofline.core_seconds(
            core, GPUS[table.gpu], phase=table.phase, tokens_G=tokens_R[same], keys_G=keys_R[same]
        )
    return seconds
