"""The file format: Parquet columns and `moecast.*` metadata of a routing trace, and the way to and from arrays.

One row per token. `experts` and `weights` are fixed-size binary, [L, K] little-endian uint16 and
float16. Axes: T token, L MoE layer, K choice.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from moecast.errors import MoecastError
from moecast.traces.meta import PHASES, TraceMeta
from moecast.traces.trace import RoutingTrace

SCHEMA_VERSION = 1
_PREFIX = "moecast."
MAX_METADATA_BYTES = 16 << 20

# Parquet column -> RoutingTrace array, for the columns that are plain numbers.
NUMBER_COLUMNS = {
    "step": "step_T",
    "sequence": "sequence_T",
    "position": "position_T",
    "source_rank": "source_rank_T",
    "token_id": "token_id_T",
}
_NUMBER_TYPES = {
    "step": pa.uint32(),
    "sequence": pa.uint32(),
    "position": pa.uint32(),
    "source_rank": pa.uint16(),
    "token_id": pa.int32(),
}
_NEVER_NULL = {"sequence", "position", "phase", "experts", "weights"}


def schema_of(meta: TraceMeta, *, weights: bool) -> pa.Schema:
    """Arrow schema of a trace with these sizes, its metadata included."""
    matrix = pa.binary(2 * meta.layers * meta.choices)
    types: dict[str, pa.DataType] = {
        "step": _NUMBER_TYPES["step"],
        "sequence": _NUMBER_TYPES["sequence"],
        "position": _NUMBER_TYPES["position"],
        "phase": pa.dictionary(pa.int8(), pa.string()),
        "topic": pa.dictionary(pa.int16(), pa.string()),
        "source_rank": _NUMBER_TYPES["source_rank"],
        "token_id": _NUMBER_TYPES["token_id"],
        "experts": matrix,
    }
    if weights:
        types["weights"] = matrix
    fields = [pa.field(name, kind, nullable=name not in _NEVER_NULL) for name, kind in types.items()]
    return pa.schema(fields, metadata=encode_meta(meta))


def encode_meta(meta: TraceMeta) -> dict[str, str]:
    """Metadata keys `moecast.*`; what is not known is left out."""
    values: dict[str, Any] = {
        "schema": SCHEMA_VERSION,
        "layers": meta.layers,
        "experts": meta.experts,
        "choices": meta.choices,
        "config": meta.config,
        "layer_ids": meta.layer_ids,
        "source": dict(meta.source),
    }
    encoded = {
        name: json.dumps(value, sort_keys=name == "source") for name, value in values.items() if value is not None
    }
    return {_PREFIX + name: text for name, text in {"model": meta.model, **encoded, "notes": meta.notes}.items()}


def decode_meta(raw: Mapping[bytes, bytes] | None, file: str | Path) -> TraceMeta:
    """Metadata of a Parquet file as a TraceMeta.

    Raises
    ------
    MoecastError
        Not a routing trace, another schema version, or a value that breaks a rule.
    """
    values = {
        key.decode("utf-8", "replace").removeprefix(_PREFIX): value
        for key, value in (raw or {}).items()
        if key.startswith(_PREFIX.encode())
    }
    if "schema" not in values:
        rule = f"not a moecast routing trace: Parquet without {_PREFIX}schema metadata"
        raise MoecastError(rule, file=file)
    if sum(map(len, values.values())) > MAX_METADATA_BYTES:
        rule = f"more than {MAX_METADATA_BYTES >> 20} MiB of metadata, not read"
        raise MoecastError(rule, file=file)
    if (version := _json(values, "schema", file)) != SCHEMA_VERSION:
        rule = f"this moecast reads version {SCHEMA_VERSION}"
        raise MoecastError(rule, file=file, field="schema", value=version)
    for name in ("config", "source"):
        if not isinstance(_json(values, name, file), (dict, type(None))):
            raise MoecastError("must be a JSON object", file=file, field=_PREFIX + name)
    layer_ids = _layer_ids(_json(values, "layer_ids", file), file)
    try:
        return TraceMeta(
            model=values.get("model", b"").decode(),
            layers=_json(values, "layers", file),
            experts=_json(values, "experts", file),
            choices=_json(values, "choices", file),
            config=_json(values, "config", file),
            layer_ids=layer_ids,
            source=_json(values, "source", file) or {},
            notes=values.get("notes", b"").decode(),
        )
    except (TypeError, ValueError) as error:
        raise MoecastError(str(error), file=file, field="metadata") from error


def _json(values: Mapping[str, bytes], name: str, file: str | Path) -> Any:
    try:
        return json.loads(values[name], parse_constant=_no_constant) if name in values else None
    except (ValueError, RecursionError) as error:
        raise MoecastError("not JSON", file=file, field=_PREFIX + name) from error


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _layer_ids(value: Any, file: str | Path) -> tuple[int, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(type(layer) is int for layer in value):
        rule = "must be a list of whole numbers"
        raise MoecastError(rule, file=file, field=_PREFIX + "layer_ids")
    return tuple(value)


def check_schema(schema: pa.Schema, meta: TraceMeta, file: str | Path) -> None:
    """Fail when a file's columns are not those of the format.

    Raises
    ------
    MoecastError
        A column is missing or of another type.
    """
    expected = schema_of(meta, weights="weights" in schema.names)
    for field in expected:
        if schema.get_field_index(field.name) < 0:
            raise MoecastError("the column is missing or there twice", file=file, field=field.name)
        found = schema.field(field.name).type
        if not (found == field.type or (_is_text(field.type) and _is_text(found))):
            rule = f"must be {field.type}"
            raise MoecastError(rule, file=file, field=field.name, value=str(found))


def _is_text(kind: pa.DataType) -> bool:
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(value) or pa.types.is_large_string(value))


def to_table(trace: RoutingTrace, meta: TraceMeta | None = None) -> pa.Table:
    """Arrow table of a trace, with its own metadata or `meta`; the matrices share its memory."""
    schema = schema_of(meta or trace.meta, weights=trace.weights_TLK is not None)
    tokens = trace.n_tokens
    columns: dict[str, pa.Array] = {}
    for name, attribute in NUMBER_COLUMNS.items():
        array = getattr(trace, attribute)
        columns[name] = pa.nulls(tokens, _NUMBER_TYPES[name]) if array is None else pa.array(array)
    columns["phase"] = pa.DictionaryArray.from_arrays(pa.array(trace.phase_T.astype(np.int8)), pa.array(PHASES))
    topics = pa.array(trace.topics, pa.string())
    topic_index = pa.array(trace.topic_T, mask=trace.topic_T < 0)
    columns["topic"] = pa.DictionaryArray.from_arrays(topic_index, topics)
    columns["experts"] = _from_matrix(trace.experts_TLK, "<u2")
    if trace.weights_TLK is not None:
        columns["weights"] = _from_matrix(trace.weights_TLK, "<f2")
    return pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema)


def _from_matrix(array_TLK: npt.NDArray[Any], dtype: str) -> pa.Array:
    little = np.ascontiguousarray(array_TLK, dtype=dtype)
    width = little.itemsize * little.shape[1] * little.shape[2]
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(little), [None, pa.py_buffer(little)])


def numbers_of(column: pa.Array) -> npt.NDArray[Any]:
    """View a column of whole numbers, whatever stands where they are null; copies nothing.

    pyarrow's own `to_numpy` imports pandas where that is installed, half a second that each command
    would pay.
    """
    dtype = np.dtype(str(column.type))
    return np.frombuffer(column.buffers()[1], dtype, count=len(column), offset=column.offset * dtype.itemsize)


def codes_of(column: pa.Array) -> npt.NDArray[np.int64]:
    """Numbers of a dictionary's column, -1 for null; `fill_null` too would import pandas."""
    codes_T = numbers_of(column).astype(np.int64)
    if column.null_count:
        known_T = np.unpackbits(np.frombuffer(column.buffers()[0], np.uint8), bitorder="little")
        codes_T[known_T[column.offset : column.offset + len(column)] == 0] = -1
    return codes_T


def matrix_of(column: pa.Array, meta: TraceMeta, dtype: str) -> npt.NDArray[Any]:
    """View [T, L, K] of a fixed-size binary column without nulls; copies nothing on little-endian machines."""
    width = 2 * meta.layers * meta.choices
    data = column.buffers()[1]
    flat = np.frombuffer(data, dtype, count=len(column) * width // 2, offset=column.offset * width)
    native = flat.astype(np.dtype(dtype).newbyteorder("="), copy=False)
    return native.reshape(len(column), meta.layers, meta.choices)
