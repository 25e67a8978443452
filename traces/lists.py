"""Export for readers that do not know fixed-size binary: choices as Parquet lists, empty ones as null.

Axes: T token, L MoE layer, K choice.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from moecast.files import atomic_path
from moecast.traces.decoder import open_parquet
from moecast.traces.format import schema_of, to_table
from moecast.traces.meta import NO_CHOICE, TraceMeta
from moecast.traces.reader import iter_trace
from moecast.traces.shards import Advance, read_meta, shard_paths
from moecast.traces.trace import RoutingTrace


def export_lists(path: str | Path, out: str | Path, *, progress: Advance | None = None) -> int:
    """Copy a trace to one Parquet file whose `experts` are lists [L][K] of uint16, and `weights` of float.

    Return T.

    moecast itself does not read the copy.

    Raises
    ------
    MoecastError
        The trace cannot be read or the file cannot be written.
    """
    with open_parquet(shard_paths(path)[0]) as file:
        weights = "weights" in file.schema_arrow.names
    schema = _schema(read_meta(path), weights=weights)
    tokens = 0
    with atomic_path(out) as part, pq.ParquetWriter(part, schema, compression="zstd") as writer:
        for batch in iter_trace(path, weights=weights, progress=progress):
            writer.write_table(_table(batch, schema))
            tokens += batch.n_tokens
    return tokens


def _schema(meta: TraceMeta, *, weights: bool) -> pa.Schema:
    binary = schema_of(meta, weights=weights)
    lists = {"experts": pa.list_(pa.list_(pa.uint16())), "weights": pa.list_(pa.list_(pa.float32()))}
    # Without the schema key no reader takes the copy for the format itself.
    kept = {key: value for key, value in binary.metadata.items() if key != b"moecast.schema"}
    return pa.schema([field.with_type(lists.get(field.name, field.type)) for field in binary], metadata=kept)


def _table(trace: RoutingTrace, schema: pa.Schema) -> pa.Table:
    binary = to_table(trace)
    columns = {name: binary[name] for name in binary.column_names}
    empty_TLK = trace.experts_TLK == NO_CHOICE
    columns["experts"] = _lists(trace.experts_TLK, empty_TLK)
    if trace.weights_TLK is not None:
        columns["weights"] = _lists(trace.weights_TLK.astype(np.float32), empty_TLK)
    return pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema)


def _lists(array_TLK: npt.NDArray[Any], empty_TLK: npt.NDArray[np.bool_]) -> pa.Array:
    tokens, layers, choices = array_TLK.shape
    values = pa.array(array_TLK.reshape(-1), mask=empty_TLK.reshape(-1))
    per_layer = pa.ListArray.from_arrays(np.arange(0, tokens * layers * choices + 1, choices, dtype=np.int32), values)
    return pa.ListArray.from_arrays(np.arange(0, tokens * layers + 1, layers, dtype=np.int32), per_layer)
