"""Fitted parameters as data: what they are, on which rows they were fitted, and whose they stand in for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from importlib import resources
from math import isnan
from typing import Any, Generic, TypeVar

from moecast.errors import MoecastError
from moecast.sim.cost.gpus import nearest
from moecast.sim.cost.tables.folder import version_key

P = TypeVar("P")

NEUTRAL = "neutral"  # no engine: fitted on the rows of all
ANY = "any"  # the kind of a family that has but one
ERRORS = ("median", "p90", "bias")
Entries = Mapping[tuple[str, str, str], "Entry[P]"]
"""By GPU, engine and kind."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry(Generic[P]):
    """Parameters of one GPU, engine, version and kind (element type, kernel or phase), and their errors.

    Parameters
    ----------
    version
        Theirs from this one on, up to the next that has parameters.
    parameters
        A dataclass of the family's.
    fitted, rows, seed
        Rows of this GPU that set them, rows in all, and the seed that drew them.
    median, p90, bias
        Relative errors on this GPU's rows of shapes that nobody fitted; nan where there are none.
    note
        What else to know.
    transferred
        From which GPU, engine or kind, where they are not its own.
    """

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
    transferred: str = ""

    @property
    def other_types(self) -> bool:
        """Whether they were fitted for other element types than were asked for."""
        return "types " in self.transferred

    def as_json(self) -> dict[str, Any]:
        """The entry as it stands in its family's file."""
        item = {part.name: getattr(self, part.name) for part in fields(self) if part.name != "transferred"}
        errors = {name: None if isnan(item[name]) else item[name] for name in ERRORS}
        parameters: Any = self.parameters
        values = {part.name: getattr(parameters, part.name) for part in fields(parameters)}
        return item | errors | {"parameters": values}


def load_entries(family: str, parameters: type[P]) -> tuple[Entry[P], ...]:
    """All entries of a family, older versions of an engine before newer ones."""
    return read_entries(family, lambda _: parameters)


def read_entries(family: str, parameters_of: Callable[[Mapping[str, Any]], type[Any]]) -> tuple[Entry[Any], ...]:
    """As `load_entries`, where entries may have dataclasses of their own, which their kind or their `form` names."""
    text = resources.files("moecast.sim.cost").joinpath(f"fitted/{family}.json").read_text(encoding="utf-8")
    return tuple(_entry(item, parameters_of(item)) for item in json.loads(text)["entries"])


def _entry(item: Mapping[str, Any], parameters: type[Any]) -> Entry[Any]:
    values = {name: value for name, value in item.items() if name != "form"}
    errors = {name: float("nan") if values[name] is None else values[name] for name in ERRORS}
    return Entry(**values | errors | {"parameters": parameters(**values["parameters"])})


def newest(entries: Iterable[Entry[P]], version: str | None = None) -> Entries[P]:
    """By GPU, engine and kind; of several versions the last, or that of a version: its own or the last before it."""
    found: dict[tuple[str, str, str], Entry[P]] = {}
    for entry in sorted(entries, key=lambda entry: version_key(entry.version)):
        key = entry.gpu, entry.engine, entry.kind
        if version is None or key not in found or version_key(entry.version) <= version_key(version):
            found[key] = entry
    return found


def find_entry(entries: Entries[P], gpu: str, engine: str, kind: str) -> Entry[P] | None:
    """The engine's entry on the nearest GPU, else the neutral one; None where no table has the kind."""
    for name in dict.fromkeys((engine, NEUTRAL)):
        try:
            found = entries[nearest(gpu, _having(entries, name, kind)), name, kind]
        except ValueError:
            continue
        stands_in = [f"GPU {found.gpu}"] if found.gpu != gpu else []
        stands_in += [f"engine {name}"] if name != engine else []
        return replace(found, transferred=", ".join(stands_in))
    return None


def the_entry(entries: Entries[P], gpu: str, engine: str, kind: str = ANY) -> Entry[P]:
    """As `find_entry`, where there must be one.

    Raises
    ------
    MoecastError
        No GPU has rows of the engine and kind.
    ValueError
        An unknown GPU, or no relative of it has such rows.
    """
    found = find_entry(entries, gpu, engine, kind)
    if found is not None:
        return found
    if having := _having(entries, engine, kind) | _having(entries, NEUTRAL, kind):
        nearest(gpu, having)
    asked = engine if kind == ANY else f"{engine} {kind}"
    raise MoecastError("an engine and phase with fitted parameters", field="engine", value=asked)


def _having(entries: Entries[P], engine: str, kind: str) -> set[str]:
    return {key[0] for key in entries if key[1:] == (engine, kind)}
