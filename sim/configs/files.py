"""A Hugging Face `config.json` on the disk, with the `hf_quant_config.json` that may lie beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moecast.errors import MoecastError
from moecast.files import read_json
from moecast.sim.configs.config import shape_fields
from moecast.sim.configs.types import BESIDE

MOST_BYTES = 16 << 20


def config_fields(
    config: Mapping[str, Any] | str | Path, *, name: str | None = None
) -> tuple[str, dict[str, Any], Path | str | None]:
    """Read a config: a file, a folder that holds one, or its value.

    Returns
    -------
    What the model is called where nobody says; the fields of its `ModelShape`; and where they
    stand, for errors.

    Raises
    ------
    MoecastError
        The file cannot be read; a field is missing, of the wrong type or out of range, or says what
        cannot be priced.
    """
    if isinstance(config, Mapping):
        return "model", shape_fields(config, file=name, beside=None), name
    file = Path(config)
    file = file / "config.json" if file.is_dir() else file
    quantised = file.parent / BESIDE
    beside = None
    value = _read_object(file)
    if quantised.is_file():
        beside = _read_object(quantised)
    default = file.parent.name if file.name == "config.json" else file.stem
    return default or "model", shape_fields(value, file=file, beside=beside), file


def _read_object(file: Path) -> Mapping[str, Any]:
    value = read_json(file, limit_bytes=MOST_BYTES)
    if not isinstance(value, dict):
        raise MoecastError("not a JSON object", file=file)
    return value
