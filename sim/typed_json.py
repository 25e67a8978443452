"""From parsed JSON to the annotated fields of a frozen value: what is of another type is refused by its name."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from moecast.errors import MoecastError


def read_fields(
    kind: type, value: Mapping[str, Any], *, beside: Collection[str] = (), file: str | Path | None = None
) -> dict[str, Any]:
    """Read the fields of a dataclass: every one must be there, and nothing else but what may stand `beside` them.

    Lists become tuples. Of types, those are known that such values have: text, numbers, truth,
    tuples and mappings.

    Raises
    ------
    MoecastError
        A field is missing, unknown or of the wrong type, or a number is not finite.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for name in value:
        if name not in beside and name not in fields:
            raise MoecastError("unknown field", file=file, field=name)
    for name in fields:
        if name not in value:
            raise MoecastError("missing", file=file, field=name)
    return {name: _read(value[name], str(fields[name].type), name, file) for name in fields}


def _read(value: Any, annotation: str, name: str, file: str | Path | None) -> Any:
    if annotation.endswith(" | None"):
        return None if value is None else _read(value, annotation.removesuffix(" | None"), name, file)
    if annotation.startswith("tuple[") and isinstance(value, list):
        inner = annotation.removeprefix("tuple[").removesuffix(", ...]")
        return tuple(_read(item, inner, name, file) for item in value)
    if annotation.startswith("Mapping[str, ") and isinstance(value, dict):
        inner = annotation.removeprefix("Mapping[str, ").removesuffix("]")
        return {str(key): _read(item, inner, f"{name}.{key}", file) for key, item in value.items()}
    if annotation == "Any":
        return value
    if annotation == "float" and isinstance(value, (int, float)) and not isinstance(value, bool):
        if _is_finite(value):
            return float(value)
    elif type(value).__name__ == annotation:
        return value
    wanted = {"str": "text", "float": "a finite number", "int": "a whole number", "bool": "true or false"}
    rule = f"must be {wanted.get(annotation, 'an object or list')}"
    raise MoecastError(rule, file=file, field=name, value=value)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float holds
        return False
