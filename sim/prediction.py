"""The Prediction: what simulate answers, as a frozen value and as JSON.

Axes: W simulated step, L MoE layer, G rank.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moecast.errors import MoecastError
from moecast.files import read_json, write_text
from moecast.sim.accuracy.grounds import check_rests_on, grounds_text
from moecast.sim.prediction_values import PredictionValues
from moecast.sim.program import BREAKDOWN_PARTS
from moecast.sim.quantities import quantities_of, title_of
from moecast.sim.shown import ShownAsTable
from moecast.sim.typed_json import read_fields

SCHEMA = 4

_OTHERS = {
    frozenset(("recipe", "in_flight_P")): "a forecast of `moecast train`",
    frozenset(("varied", "points")): "a sweep, whose points hold predictions",
    frozenset(("collective", "rows")): "a table of `moecast collective`",
    frozenset(("moecast", "request_throughput")): "a run of `moecast serve`",
    frozenset(("winner", "front")): "what `moecast plan` found",
}
"""What other commands write, by fields of theirs."""
_OF_OTHERS = frozenset().union(*_OTHERS)

MEMORY_PARTS = ("weights", "slots", "kv", "activations", "total", "usable", "capacity")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Prediction(PredictionValues, ShownAsTable):
    """How fast a plan runs a workload, what it needs and what limits it: the fields of `PredictionValues`."""

    @property
    def table_title(self) -> str:
        """Model, phase, cluster, rung and steps."""
        return f"{self.model}: {title_of(self)}"

    def table_rows(self) -> list[tuple[str, str]]:
        """What `moecast simulate` prints."""
        return [(quantity.name, quantity.shown(self)) for quantity in quantities_of([self])]

    def table_notes(self) -> list[str]:
        """What the step time rests on, the labels, and the warnings."""
        grounds = grounds_text(self.rests_on)
        return [*([grounds] if grounds else []), *self.labels, *(f"warning: {warning}" for warning in self.warnings)]

    def to_json(self) -> dict[str, Any]:
        """Give the prediction as plain JSON values, in the order of the fields."""
        values = {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}
        return {"schema": SCHEMA, **values}

    @classmethod
    def from_json(cls, value: Any, *, file: str | Path | None = None) -> Prediction:
        """Read what `to_json` gave.

        Raises
        ------
        MoecastError
            A field is missing, unknown or of the wrong type, a number is not finite, or the schema
            is another's.
        """
        if isinstance(value, dict) and (other := _OTHERS.get(frozenset(_OF_OTHERS & set(value)))):
            raise MoecastError(f"is {other}, not a prediction of `moecast simulate`", file=file)
        if not isinstance(value, dict) or "breakdown_s" not in value:
            raise MoecastError("not a moecast prediction (no field 'breakdown_s')", file=file)
        if value.get("schema") != SCHEMA:
            raise MoecastError(
                f"this moecast reads prediction schema {SCHEMA}", file=file, field="schema", value=value.get("schema")
            )
        read = read_fields(cls, value, beside=("schema",), file=file)
        _check_keys(read["breakdown_s"], BREAKDOWN_PARTS, "breakdown_s", file)
        _check_keys(read["critical_path"], BREAKDOWN_PARTS, "critical_path", file)
        if read["memory_bytes"] is not None:
            _check_keys(read["memory_bytes"], MEMORY_PARTS, "memory_bytes", file)
        try:
            check_rests_on(read["rests_on"])
            return cls(**read)
        except ValueError as error:
            raise MoecastError(str(error), file=file) from error


def write_prediction(prediction: Prediction, path: str | Path) -> None:
    """Write a prediction as JSON, whole or not at all."""
    write_text(path, json.dumps(prediction.to_json(), indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def read_prediction(path: str | Path) -> Prediction:
    """Read a prediction from its JSON file.

    Raises
    ------
    MoecastError
        The file is missing, not JSON, or not a prediction.
    """
    return Prediction.from_json(read_json(path), file=path)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value


def _check_keys(found: Mapping[str, Any], keys: tuple[str, ...], name: str, file: str | Path | None) -> None:
    if set(found) != set(keys):
        raise MoecastError(f"has exactly the parts {', '.join(keys)}", file=file, field=name)
