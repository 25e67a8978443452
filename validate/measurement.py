"""The Measurement: how long a plan's exchanges took on real processes, as a frozen value and as JSON.

Axes: W step, L MoE layer, G rank.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moecast.errors import MoecastError
from moecast.files import read_json, write_text
from moecast.sim.typed_json import read_fields

SCHEMA = 1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What a replay measured; every row that arrived was compared with what should have arrived.

    Parameters
    ----------
    plan_hash, trace_hash, workload
        What was asked: sha256 of the plan's slots and layout, the trace's content hash, the
        workload's own values.
    model
        The model whose widths the rows have.
    dispatch
        The dispatch mode that was replayed.
    ranks, layers, steps
        G, L, W.
    dispatch_s_WLG, combine_s_WLG
        Seconds of each rank in each exchange: median over `repeats` after `warmup`, all ranks
        starting together. The dispatch includes the exchange of counts before it.
    expert_s_WLG
        Seconds of each rank's experts on the rows it received; None where only bytes were moved.
    dispatch_bytes, combine_bytes
        Bytes leaving ranks per step, over all ranks and layers, own rank excluded.
    row_bytes
        Bytes of one row by exchange: "dispatch" and "combine".
    rows_checked
        Rows compared byte by byte, over all ranks, steps and layers.
    repeats, warmup
        How often each exchange was timed, and run before that.
    backend
        "nccl" or "gloo".
    hardware
        The device of each rank.
    software
        Versions by name.
    date
        When it was measured.
    """

    plan_hash: str
    trace_hash: str
    workload: Mapping[str, Any]
    model: str
    dispatch: str
    ranks: int
    layers: int
    steps: int
    dispatch_s_WLG: tuple[tuple[tuple[float, ...], ...], ...]
    combine_s_WLG: tuple[tuple[tuple[float, ...], ...], ...]
    expert_s_WLG: tuple[tuple[tuple[float, ...], ...], ...] | None
    dispatch_bytes: float
    combine_bytes: float
    row_bytes: Mapping[str, int]
    rows_checked: int
    repeats: int
    warmup: int
    backend: str
    hardware: tuple[str, ...]
    software: Mapping[str, str]
    date: str
    checked: bool = True

    def __post_init__(self) -> None:
        """Check that the times fit the sizes."""
        for name in ("ranks", "layers", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: at least one is measured")
        for name in ("dispatch_s_WLG", "combine_s_WLG", "expert_s_WLG"):
            times = getattr(self, name)
            if times is not None:
                _check_times(name, times, (self.steps, self.layers, self.ranks))

    @property
    def exchange_s(self) -> float:
        """Time of all exchanges of a step, the slowest rank of each deciding; the mean over steps."""
        slowest = [
            sum(max(rank_G) for rank_G in layers_LG)
            for times in (self.dispatch_s_WLG, self.combine_s_WLG)
            for layers_LG in times
        ]
        return math.fsum(slowest) / self.steps

    def layer_s(self, exchange: str) -> tuple[float, ...]:
        """Time of each layer's "dispatch" or "combine": the slowest rank's, the mean over steps."""
        times = {"dispatch": self.dispatch_s_WLG, "combine": self.combine_s_WLG}[exchange]
        return tuple(math.fsum(max(step[layer]) for step in times) / self.steps for layer in range(self.layers))

    def to_json(self) -> dict[str, Any]:
        """Give the measurement as plain JSON values."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        plain = json.loads(json.dumps(values, default=dict))
        return {"schema": SCHEMA, "kind": "measurement", "exchange_s": self.exchange_s, **plain}

    @classmethod
    def from_json(cls, value: Any, *, file: str | Path | None = None) -> Measurement:
        """Read what `to_json` gave.

        Raises
        ------
        MoecastError
            Not a measurement, another schema, or a field that is missing, unknown or does not fit.
        """
        if not isinstance(value, dict) or value.get("kind") != "measurement":
            raise MoecastError("not a moecast measurement", file=file)
        if value.get("schema") != SCHEMA:
            rule = f"this moecast reads measurement schema {SCHEMA}"
            raise MoecastError(rule, file=file, field="schema")
        read = read_fields(cls, value, beside=("schema", "kind", "exchange_s"), file=file)
        try:
            return cls(**read)
        except ValueError as error:
            raise MoecastError(str(error), file=file) from error


def write_measurement(measurement: Measurement, path: str | Path) -> None:
    """Write a measurement as JSON, whole or not at all."""
    write_text(path, json.dumps(measurement.to_json(), indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def read_measurement(path: str | Path) -> Measurement:
    """Read a measurement from its JSON file.

    Raises
    ------
    MoecastError
        The file is missing, not JSON, or not a measurement.
    """
    return Measurement.from_json(read_json(path), file=path)


def _check_times(name: str, times: tuple[tuple[tuple[float, ...], ...], ...], shape: tuple[int, ...]) -> None:
    fits = len(times) == shape[0] and all(
        len(layers_LG) == shape[1] and all(len(rank_G) == shape[2] for rank_G in layers_LG) for layers_LG in times
    )
    if not fits:
        raise ValueError(f"{name} must be [steps, layers, ranks] = {list(shape)}")
    for layers_LG in times:
        for rank_G in layers_LG:
            if not all(isinstance(s, (int, float)) and math.isfinite(s) and s >= 0 for s in rank_G):
                raise ValueError(f"{name}: a time is a finite number of seconds, not negative")
