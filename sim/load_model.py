"""Models by name, or by the config that stands beside their weights."""

from __future__ import annotations

from pathlib import Path

from moecast.errors import MoecastError
from moecast.sim.model import ModelShape
from moecast.sim.models import PRESETS


def list_models() -> tuple[str, ...]:
    """List the names of the presets."""
    return tuple(PRESETS)


def load_model(name_or_path: str | Path) -> ModelShape:
    """Load a preset by name, or the `config.json` (or the folder that holds it) at a path.

    Raises
    ------
    MoecastError
        Neither a preset nor a readable, known config.
    """
    name = str(name_or_path)
    if name in PRESETS:
        return ModelShape.from_config(PRESETS[name].config, name=name)
    if not Path(name).exists():
        rule = f"no such file and no such preset; presets: {', '.join(PRESETS)}"
        raise MoecastError(rule, field="model", value=name)
    return ModelShape.from_config(Path(name))
