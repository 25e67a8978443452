"""Files that engines and libraries record: JSON lines, NumPy archives, torch's pickles, safetensors, folders."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import polars as pl
from hypothesis import strategies as st
from safetensors.numpy import save

from moecast.errors import MoecastError
from moecast.traces import ImportOptions, LoadTable, import_trace
from tests.fuzz.mutations import (
    SCALARS,
    mutate,
    mutate_array,
    mutate_bytes,
    often_mutated,
    to_json,
)
from tests.fuzz.runner import Target
from tests.importers.layouts import (
    draw_choices,
    event_table,
    megatron_lines,
    route_lines,
    routes_document,
    sglang_pass,
    sglang_response,
    torch_save,
    vllm_split,
    vllm_whole,
)

_OPTIONS = ImportOptions(experts=6, choices=2, hidden_layers=2, layer_ids=(0, 1), limit_bytes=64 << 20)
_PLAIN = ImportOptions(limit_bytes=64 << 20)

Choices = tuple[Any, Any]


@st.composite
def _routing(draw: st.DrawFn) -> Choices:
    """Choices of a prompt and of what was generated, [tokens, 2 layers, 2 of 6 experts]."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return draw_choices(rng, draw(st.integers(1, 4)), 2, 6, 2), draw_choices(rng, draw(st.integers(1, 3)), 2, 6, 2)


def _read(path: Path) -> object:
    """With all that the user may know and, where that is enough, with nothing; what is read is used."""
    found = import_trace(path, _OPTIONS)
    assert isinstance(found, LoadTable) or found.content_hash()
    with contextlib.suppress(MoecastError):
        import_trace(path, _PLAIN)
    return found


def _lines(name: str, records: Callable[[Choices, Random], list[Any]]) -> Target:
    def write(routing: Choices, rng: Random, folder: Path) -> Path:
        lines = records(routing, rng)
        if rng.random() < 0.65:
            at = rng.randrange(len(lines))
            lines[at] = mutate(lines[at], rng)
        path = folder / f"{name}.jsonl"
        data = b"\n".join(to_json(line, rng) for line in lines) + b"\n"
        path.write_bytes(often_mutated(data, rng, mutate_bytes, part=0.2))
        return path

    return Target(name=f"import-{name}", documents=_routing, write=write, read=_read, share=0.8)


def _arrays(name: str, suffix: str, dump: Callable[[dict[str, Any], Random], bytes]) -> Target:
    def write(routing: Choices, rng: Random, folder: Path) -> Path:
        whole = np.concatenate(routing)
        arrays: dict[str, Any] = {"routed_experts": whole}
        if suffix == ".npz":
            more = {"token_ids": np.arange(len(whole) + 1)}
            topics = {"law": routing[0].astype(np.uint8), "code": routing[1].astype(np.uint8)}
            arrays = rng.choice((arrays, arrays | more, topics))
        if rng.random() < 0.6:
            key = rng.choice(sorted(arrays))
            arrays[key] = mutate_array(arrays[key], rng)
        if rng.random() < 0.15:
            arrays[rng.choice(("", "x" * 300, "../x", "routed_experts ", "[/bold]", "a\nb", "\x1b[2J"))] = (
                arrays.popitem()[1]
            )
        path = folder / f"{name}{suffix}"
        path.write_bytes(often_mutated(dump(arrays, rng), rng, mutate_bytes, part=0.3))
        return path

    return Target(name=f"import-{name}", documents=_routing, write=write, read=_read, share=0.6)


def _route_log(routing: Choices, _rng: Random) -> list[Any]:
    return [line for layer in (0, 1) for line in route_lines(routing[0][:, layer], layer=layer, request="r1")]


def _event_arrays(routing: Choices, rng: Random, folder: Path) -> Path:
    """OLMoE's flat table, an array of it changed or missing."""
    tokens = len(routing[0])
    arrays = event_table(routing[0], np.zeros(tokens, int), np.arange(3, 3 + tokens), np.arange(tokens) % 2)
    if rng.random() < 0.6:
        key = rng.choice(sorted(arrays.keys() - {"schema_version"}))
        arrays[key] = mutate_array(arrays[key], rng)
    path = folder / "events.npz"
    np.savez(path, **arrays)
    path.write_bytes(often_mutated(path.read_bytes(), rng, mutate_bytes, part=0.3))
    return path


def _table(kind: str) -> Target:
    """A flat table whose columns the user names: a row for each choice, or for all of a token at a layer."""
    names = {"sequence": "s", "position": "p", "layer": "l", "expert": "e", "weight": "w", "topic": "t"}
    options = ImportOptions(experts=6, columns=names, limit_bytes=64 << 20)

    def write(routing: Choices, rng: Random, folder: Path) -> Path:
        wide = kind != "csv" and rng.random() < 0.5
        rows = [
            {"s": "q", "p": token, "l": layer, "e": ids if wide else ids[0], "w": [0.5] * 2 if wide else 0.5, "t": 1}
            for token, of_layer in enumerate(routing[0].tolist())
            for layer, ids in enumerate(of_layer)
        ]
        path = folder / f"rows.{kind}"
        path.write_bytes(often_mutated(_table_bytes(kind, rows, rng), rng, mutate_bytes, part=0.5))
        return path

    return Target(
        name=f"import-table-{kind}",
        documents=_routing,
        write=write,
        read=lambda path: import_trace(path, options),
        share=0.4,
    )


def _table_bytes(kind: str, rows: list[dict[str, Any]], rng: Random) -> bytes:
    if kind == "parquet":
        buffer = io.BytesIO()
        pl.DataFrame(rows).write_parquet(buffer, compression=rng.choice(("zstd", "uncompressed", "snappy")))
        return buffer.getvalue()
    if kind == "csv":
        lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
        if rng.random() < 0.4:
            at = rng.randrange(len(lines))
            lines[at] = lines[at].replace(
                rng.choice(lines[at]), rng.choice(("x", "", "9" * 6000, "nan", '"', "\0", "-1"))
            )
        return "\n".join(lines).encode()
    return b"\n".join(to_json(often_mutated(row, rng, mutate, part=0.1), rng) for row in rows)


def _npz(arrays: dict[str, Any], rng: Random) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for key, array in arrays.items():
            archive.writestr(f"{key}.npy", often_mutated(_npy({"a": array}, rng), rng, mutate_bytes, part=0.1))
    return buffer.getvalue()


def _npy(arrays: dict[str, Any], _rng: Random) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, next(iter(arrays.values())), allow_pickle=True)
    return buffer.getvalue()


def _safetensors(arrays: dict[str, Any], rng: Random) -> bytes:
    good = {key: array for key, array in arrays.items() if array.dtype.kind in "iufb" and array.dtype.isnative}
    data = save(good or {"routed_experts": np.zeros((2, 2, 2), np.int16)})
    return often_mutated(data, rng, _other_header, part=0.4)


def _other_header(data: bytes, rng: Random) -> bytes:
    length = int.from_bytes(data[:8], "little")
    header = to_json(mutate(json.loads(data[8 : 8 + length]), rng), rng)
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def _write_recorder(routing: Choices, rng: Random, folder: Path) -> Path:
    """SGLang's dumps: records of passes, or counts; changed in their values, their pickle, or their bytes."""
    prompt, generated = routing
    value: Any = rng.choice(
        (
            {
                "records": [sglang_pass(0, 0, prompt), sglang_pass(1, 0, generated, mode=2)],
                "last_physical_to_logical_map": np.asarray([[*range(6)]] * 2, np.int64),
            },
            {"rank": 0, "logical_count": np.ones((3, 2, 6), np.int32)},
        )
    )
    path = folder / "recorded.pt"
    if rng.random() < 0.6:
        value = _mutate_tensors(value, rng)
    torch_save(value, path)
    if rng.random() < 0.3:
        _mutate_pickle(path, rng)
    path.write_bytes(often_mutated(path.read_bytes(), rng, mutate_bytes, part=0.2))
    return path


def _mutate_tensors(value: Any, rng: Random) -> Any:
    changed = mutate(value, rng) if rng.random() < 0.5 else value
    found = [(holder, key) for holder, key in _places(changed) if isinstance(holder[key], np.ndarray)]
    if found:
        holder, key = rng.choice(found)
        array = mutate_array(holder[key], rng)
        holder[key] = array if array.dtype.kind in "iufb" and array.dtype.isnative else array.tolist()
    return changed


def _places(value: Any) -> list[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, item in items for place in [(value, key), *_places(item)]]


def _mutate_pickle(path: Path, rng: Random) -> None:
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            changed = data
            if name.endswith("data.pkl"):
                other = pickle.dumps(rng.choice((*SCALARS, {"records": []}, {"logical_count": 1})), rng.randrange(6))
                changed = rng.choice((mutate_bytes(data, rng), mutate_bytes(data, rng, most=1), other))
            archive.writestr(name, changed)


def _write_trtllm(routing: Choices, rng: Random, folder: Path) -> Path:
    path = folder / "statistics"
    path.mkdir()
    meta = often_mutated({"num_experts": 6, "num_experts_per_token": 2}, rng, mutate, part=0.4)
    (path / "meta_info.json").write_bytes(often_mutated(to_json(meta, rng), rng, mutate_bytes, part=0.1))
    with_choices = rng.random() < 0.5
    damaged = rng.randrange(4)
    for rank in (0, 1):
        counts = {f"{step}_{layer}": np.asarray([1, 2, 3, 4, 5, rank]) for step in (5, 6) for layer in (1, 2)}
        chosen = {f"{step}_{layer}": routing[0][:, layer - 1].astype(np.int32) for step in (5, 6) for layer in (1, 2)}
        for name, arrays in ((f"rank{rank}", counts), (f"token_selected_experts_rank{rank}", chosen)):
            if name.startswith("token") and not with_choices:
                continue
            if rank == damaged:
                key = rng.choice(sorted(arrays))
                arrays[key] = mutate_array(arrays[key], rng)
                arrays[rng.choice(("x", "5_", "_1", "5_1_1", "-1_2", "9" * 50 + "_1", key))] = arrays.pop(key)
            data = _safetensors(arrays, rng) if rank == damaged else save(arrays)
            (path / f"{name}.safetensors").write_bytes(
                often_mutated(data, rng, mutate_bytes, part=0.2) if rank == damaged else data
            )
    return path


TARGETS = (
    _lines("vllm-split", lambda routing, _: [vllm_split(*routing)] * 2),
    _lines("vllm-whole", lambda routing, _: [vllm_whole(*routing)] * 2),
    _lines("sglang-returned", lambda routing, _: [sglang_response(*routing)] * 2),
    _lines(
        "megatron",
        lambda routing, _: [line for step in range(2) for line in megatron_lines(step, 0, routing[0], [0, 1])],
    ),
    _lines("vllm-routes", _route_log),
    _lines("routes-json", lambda routing, _: [routes_document(*routing, [0, 1], experts=6)] * 2),
    Target(name="import-events", documents=_routing, write=_event_arrays, read=_read, share=0.6),
    *map(_table, ("jsonl", "csv", "parquet")),
    _arrays("npz", ".npz", _npz),
    _arrays("npy", ".npy", _npy),
    _arrays("safetensors", ".safetensors", _safetensors),
    Target(name="import-sglang-recorder", documents=_routing, write=_write_recorder, read=_read, share=0.5),
    Target(name="import-trtllm", documents=_routing, write=_write_trtllm, read=_read, share=0.4),
)
