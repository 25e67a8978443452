"""Fitted parameters as data: what they are, on which rows they were fitted, and whose they stand in for."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from importlib import resources
from typing import Any, Generic, TypeVar

from moecast.sim.cost.gpus import nearest

P = TypeVar("P")

NEUTRAL = "neutral"  # no engine: fitted on the rows of all


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry(Generic[P]):
    """Parameters of one GPU, engine, version and kind (element type or kernel), and their errors on unseen rows."""

    gpu: str
    engine: str
    version: str
    kind: str
    parameters: P
    fitted: int
    rows: int
    seed: int
    median: float
    p90: float
    bias: float
    note: str = ""
    transferred: str = ""  # from which GPU, engine or kind, where they are not its own

    @property
    def other_types(self) -> bool:
        """Whether they were fitted for other element types than were asked for."""
        return "types " in self.transferred

    def as_json(self) -> dict[str, Any]:
        """The entry as it stands in its family's file."""
        item = {part.name: getattr(self, part.name) for part in fields(self) if part.name != "transferred"}
        parameters: Any = self.parameters
        return item | {"parameters": {part.name: getattr(parameters, part.name) for part in fields(parameters)}}


def load_entries(family: str, parameters: type[P]) -> tuple[Entry[P], ...]:
    """All entries of a family, older versions of an engine before newer ones."""
    return read_entries(family, lambda _: parameters)


def read_entries(family: str, parameters_of: Callable[[str], type[Any]]) -> tuple[Entry[Any], ...]:
    """As `load_entries`, where each kind may have a dataclass of its own."""
    text = resources.files("moecast.sim.cost").joinpath(f"fitted/{family}.json").read_text(encoding="utf-8")
    return tuple(
        Entry(**item | {"parameters": parameters_of(item["kind"])(**item["parameters"])})
        for item in json.loads(text)["entries"]
    )


def newest(entries: tuple[Entry[P], ...]) -> Mapping[tuple[str, str, str], Entry[P]]:
    """By GPU, engine and kind; of several versions the last."""
    return {(entry.gpu, entry.engine, entry.kind): entry for entry in entries}


def find_entry(entries: Mapping[tuple[str, str, str], Entry[P]], gpu: str, engine: str, kind: str) -> Entry[P] | None:
    """The engine's entry on the nearest GPU, else the neutral one; None where no table has the kind."""
    for name in dict.fromkeys((engine, NEUTRAL)):
        having = {key[0] for key in entries if key[1:] == (name, kind)}
        try:
            found = entries[nearest(gpu, having), name, kind]
        except ValueError:
            continue
        stands_in = [f"GPU {found.gpu}"] if found.gpu != gpu else []
        stands_in += [f"engine {name}"] if name != engine else []
        return replace(found, transferred=", ".join(stands_in))
    return None
