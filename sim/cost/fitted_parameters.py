"""Fitted parameters as data: read from `fitted/<family>.json`, found by GPU, engine and version.

A GPU without rows takes the parameters of its nearest relative that has some, with its own peaks; what is found says
so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from moecast.errors import MoecastError
from moecast.sim.cost.gpus import nearest
from moecast.sim.cost.tables.folder import version_key

NEUTRAL = "neutral"
"""The engine whose parameters are fitted on all engines' rows together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fitted:
    """The parameters of one GPU, engine, range of versions and phase.

    Parameters
    ----------
    gpu, engine, version, phase
        Whose they are: from this version on, up to the next one that has parameters; `phase` is empty where there is
        but one.
    parameters
        A dataclass of the family's.
    rows_fitted, rows, seed
        Rows of this GPU that set them, rows in all, and the seed that drew them; other GPUs' rows of the same
        generation may have set them, too.
    median, p90, bias
        Relative errors on this GPU's rows of shapes that nobody fitted; None where there are none.
    note
        What else to know.
    """

    gpu: str
    engine: str
    version: str
    phase: str
    parameters: Any
    rows_fitted: int
    rows: int
    seed: int
    median: float | None
    p90: float | None
    bias: float | None
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """Parameters for a GPU, and whether they are another's."""

    gpu: str
    fitted: Fitted

    @property
    def parameters(self) -> Any:
        """The family's dataclass."""
        return self.fitted.parameters

    @property
    def transferred(self) -> bool:
        """Whether they were fitted on another GPU's rows."""
        return self.fitted.gpu != self.gpu


def read_fitted(family: str, kinds: Mapping[str, type]) -> tuple[Fitted, ...]:
    """Read a family's parameters; `kinds` are its dataclasses by name.

    Raises
    ------
    MoecastError
        The file does not hold such parameters.
    """
    path = resources.files("moecast.sim.cost").joinpath(f"fitted/{family}.json")
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["entries"]
        return tuple(
            Fitted(
                **{
                    **_without_kind(entry),
                    "parameters": kinds[entry["parameters"]["kind"]](**_without_kind(entry["parameters"])),
                }
            )
            for entry in entries
        )
    except (OSError, KeyError, TypeError, ValueError) as wrong:
        raise MoecastError(f"fitted parameters, not {wrong}", file=str(path)) from None


def _without_kind(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != "kind"}


def find_fitted(
    entries: Sequence[Fitted], gpu: str, engine: str, *, version: str | None = None, phase: str = ""
) -> Found:
    """Find the parameters of a GPU and engine: its own, or its nearest relative's; the newest unless one is asked for.

    An engine without rows is the neutral one.

    Raises
    ------
    MoecastError
        No GPU has rows of the engine and phase.
    ValueError
        An unknown GPU, or no relative of it has such rows.
    """
    for asked in (engine, NEUTRAL):
        some = [entry for entry in entries if (entry.engine, entry.phase) == (asked, phase)]
        if not some:
            continue
        owner = nearest(gpu, {entry.gpu for entry in some})
        return Found(gpu=gpu, fitted=_of_version([entry for entry in some if entry.gpu == owner], version))
    raise MoecastError("an engine and phase with fitted parameters", field="engine", value=f"{engine} {phase}".strip())


def _of_version(entries: Sequence[Fitted], version: str | None) -> Fitted:
    newest = sorted(entries, key=lambda entry: version_key(entry.version))
    if version is None:
        return newest[-1]
    known = [entry for entry in newest if version_key(entry.version) <= version_key(version)]
    return known[-1] if known else newest[0]
