"""Which rows of an engine's file are MoE layers: by the model's config where it is known, else by which are ever used.

Axes: R row of the file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from moecast.errors import MoecastError
from moecast.traces.importers.options import ImportOptions


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class FoundLayers:
    """The rows that are MoE layers.

    Parameters
    ----------
    rows
        Their places in the file.
    layer_ids
        Their places among the model's hidden layers; None where not known.
    dropped
        Rows of dense layers.
    note
        How the dense rows were told apart; empty where there are none.
    missing
        What to say of rows that are MoE layers by the model's config and hold no choice; empty
        where there are none.
    """

    rows: tuple[int, ...]
    layer_ids: tuple[int, ...] | None
    dropped: tuple[int, ...] = ()
    note: str = ""
    missing: str = ""


def find_layers(
    used_R: npt.ArrayLike,
    rows: str,
    options: ImportOptions,
    file_ids: Sequence[int] | None = None,
    *,
    file: Path,
) -> FoundLayers:
    """Tell MoE layers from dense ones.

    Parameters
    ----------
    used_R
        Whether any token makes a choice there.
    rows
        ``hidden``, ``moe``, ``either`` or ``some``, as the engine writes them.
    file_ids
        The rows' layers, where the file says them.

    Raises
    ------
    MoecastError
        Rows that do not fit the model.
    """
    used_R = np.asarray(used_R, bool)
    count, moe_ids = len(used_R), options.layer_ids
    everything = tuple(range(count))
    if moe_ids is None:
        if rows in ("moe", "some"):
            return FoundLayers(rows=everything, layer_ids=None if file_ids is None else tuple(file_ids))
        used = tuple(int(row) for row in np.flatnonzero(used_R))
        dropped = tuple(row for row in everything if row not in set(used))
        ids = used if dropped or rows == "hidden" else None
        note = f"Rows {_listed(dropped)} hold no choice at all: taken as dense layers and left out." if dropped else ""
        return FoundLayers(rows=used, layer_ids=ids, dropped=dropped, note=note)
    if rows == "some" and file_ids is not None:
        return _some(tuple(file_ids), moe_ids, file)
    if rows != "moe" and count == options.hidden_layers and count != len(moe_ids):
        dropped = tuple(row for row in everything if row not in set(moe_ids))
        wrong = [row for row in dropped if used_R[row]]
        if wrong:
            rule = f"the model's layer {wrong[0]} is dense, yet tokens choose experts there"
            raise MoecastError(rule, file=file, field="layers")
        note = f"Rows {_listed(dropped)} are dense layers by the model's config and left out."
        missing = _missing([layer for layer in moe_ids if not used_R[layer]], len(moe_ids))
        return FoundLayers(rows=tuple(moe_ids), layer_ids=tuple(moe_ids), dropped=dropped, note=note, missing=missing)
    if count != len(moe_ids):
        hidden = "" if options.hidden_layers is None else f" of {options.hidden_layers} hidden ones"
        raise MoecastError(f"the model has {len(moe_ids)} MoE layers{hidden}", file=file, field="layers", value=count)
    missing = _missing([layer for layer, used in zip(moe_ids, used_R, strict=True) if not used], count)
    return FoundLayers(rows=everything, layer_ids=tuple(moe_ids), missing=missing)


def _missing(layers: Sequence[int], of: int) -> str:
    """Engines leave zeros where they do not record, as SGLang does at layers that route by a hash of the token's id."""
    if not layers:
        return ""
    return (
        f"{len(layers)} of the {of} MoE layers of the model's config were not recorded (no choice "
        f"in any row, all zeros or empty): {_listed(layers)}. Statistics leave them out, and a "
        "simulation has no traffic there."
    )


def _some(ids: tuple[int, ...], moe_ids: tuple[int, ...], file: Path) -> FoundLayers:
    """Layers by their ids, which may count the model's hidden layers, or its MoE layers where those differ."""
    rows, counted = tuple(range(len(ids))), ""
    if not set(ids) <= set(moe_ids):
        if max(ids) >= len(moe_ids):
            rule = f"is none of the model's {len(moe_ids)} MoE layers, {moe_ids[0]} to {moe_ids[-1]}"
            raise MoecastError(rule, file=file, field="layer", value=max(set(ids) - set(moe_ids)))
        ids = tuple(moe_ids[place] for place in ids)
        counted = "Layer numbers are taken as counting MoE layers only. "
    part = f"{len(ids)} of the model's {len(moe_ids)} MoE layers." if len(ids) < len(moe_ids) else ""
    return FoundLayers(rows=rows, layer_ids=ids, note=(counted + part).strip())


def _listed(rows: Sequence[int]) -> str:
    text = ", ".join(str(row) for row in rows[:8])
    return text if len(rows) <= 8 else f"{text} and {len(rows) - 8} more"
