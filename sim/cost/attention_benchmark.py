"""What attention's parameters say of a benchmark's rows: whole prompts of one length, caches warm where they fit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moecast.sim.cost.attention import LATENT, key_bytes
from moecast.sim.cost.attention_decode import DecodeParameters, decode_seconds
from moecast.sim.cost.attention_prefill import PrefillParameters, prefill_seconds

if TYPE_CHECKING:
    from moecast.sim.cost.tables.attention import AttentionTable
    from moecast.topology import Hardware

Float = npt.NDArray[np.float64]


def benchmark_seconds(
    parameters: PrefillParameters | DecodeParameters, hardware: Hardware, table: AttentionTable
) -> Float:
    """The model's times of a table's rows on a GPU."""
    if isinstance(parameters, PrefillParameters):
        absorbed = parameters.absorbed
        return prefill_seconds(
            parameters,
            hardware,
            table.batch_R,
            table.tokens_R,
            heads=table.heads_R,
            kv_heads=np.where(absorbed, 1.0, table.kv_heads_R),
            head_dim=np.where(absorbed, 576.0, table.head_dim_R),
            value_dim=np.where(absorbed, 512.0, np.where(table.latent, 128.0, table.head_dim_R)),
            context=table.keys_R,
            window=table.window_R,
        )
    windowed_R = (table.window_R > 0) & (table.window_R < table.keys_R)
    value_dim = np.where(table.latent, float(LATENT), table.head_dim_R)
    width = np.where(table.latent, table.head_dim_R, 2 * table.head_dim_R)
    return decode_seconds(
        parameters,
        hardware,
        table.batch_R,
        np.where(windowed_R, table.window_R, table.keys_R),
        heads=table.heads_R,
        kv_heads=table.kv_heads_R,
        head_dim=table.head_dim_R,
        value_dim=value_dim,
        key_bytes=width * key_bytes(table.types),
        windowed=windowed_R,
        warm=True,
    )
