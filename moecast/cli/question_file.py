"""Question files: a question's fields as YAML, each under the name of the option that overrides it.

A field is declared once, as an option of `moecast.cli.options`; a file holds it in the section it
belongs to: `workload.tokens_per_rank` is `--tokens-per-rank`.
"""

from __future__ import annotations

import contextlib
import difflib
import math
import os
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from functools import cache
from pathlib import Path
from typing import Any

from moecast.cli.asked import CONTEXT, LAYOUT, Asked
from moecast.cli.own_sections import OWN_SECTIONS, own_names, section_of
from moecast.errors import MoecastError

SECTIONS = {
    "plan": ("plan", "ep", *LAYOUT, "sequence_parallel", *CONTEXT, "slots_per_rank", "dispatch", "replica_rule",
             "schedule", "microbatches"),
    "workload": (
        "phase", "tokens_per_rank", "prefill_tokens", "speculate", "acceptance", "steps", "context", "topics",
        "one_topic_per_step", "request_placement", "reuse", "from_phase", "recorded_steps",
    ),
}  # fmt: skip
"""Fields that stand in a section of a question file; the others stand at its top."""

_TYPES = {bool: "true or false", int: "a whole number", float: "a number", Path: "the name of a file", str: "text"}
_READERS: dict[type, Callable[[str], object]] = {
    bool: {"true": True, "false": False}.__getitem__,
    int: int,
    float: float,
}
MOST_BYTES = 1 << 20


def field_names() -> tuple[str, ...]:
    """The fields of a question, as options."""
    return tuple(field.name for field in fields(Asked) if field.name not in ("overrides", "given", "file", "unused"))


@cache
def declared(name: str) -> tuple[type, bool, Any]:
    """A field's type, whether it may be left open, and its option."""
    section = section_of(name)
    asked = typing.get_type_hints(Asked, include_extras=True)
    annotation = asked[name] if section is None else section.annotation(name)
    kind, info = typing.get_args(annotation)
    kinds = typing.get_args(kind) or (kind,)
    return kinds[0], type(None) in kinds, info


def dotted(name: str) -> str:
    """A field's place in a question file: `workload.tokens_per_rank`; the plan's own file is `plan.file`."""
    section = next((f"{section}." for section, names in SECTIONS.items() if name in names), "")
    return f"{section}{'file' if name == 'plan' else name}"


def last_part(name: str) -> str:
    """A field's own name, without its section."""
    return name.rpartition(".")[2]


def find_field(text: str, *, file: Path | None = None, value: object = None, taken: Collection[str] = ()) -> str:
    """The field of a dotted name.

    Its last part is enough, and one that the command takes goes first.

    Raises
    ------
    MoecastError
        There is none: the line names the nearest.
    """
    known = {dotted(name): name for name in (*field_names(), *own_names())}
    short = sorted((name for name in known.values() if text == last_part(name)), key=lambda name: name not in taken)
    found = known.get(text) or next(iter(short), None)
    if found is not None:
        return found
    names = {name.rpartition(".")[2]: name for name in known} | {name: name for name in known}
    near = difflib.get_close_matches(text, names, n=1, cutoff=0.5)
    near = near or difflib.get_close_matches(text.rpartition(".")[2], names, n=1, cutoff=0.5)
    hint = f"; the nearest is {names[near[0]]}" if near else ""
    raise MoecastError(f"a question has no such field{hint}", file=file, field=text, value=value)


def read_value(name: str, value: object, *, file: Path | None = None, field: str | None = None) -> Any:
    """Check a value of a question file, or the text of `--set`, as the option checks it.

    Raises
    ------
    MoecastError
        Of another type, or out of its range.
    """
    kind, optional, info = declared(name)
    field = field or dotted(name)
    if value is None and optional:
        return None
    read = _as(kind, _topics_text(value) if name == "topics" else value)
    if read is None:
        raise MoecastError(f"must be {_TYPES[kind]}", file=file, field=field, value=value)
    least, most = getattr(info, "min", None), getattr(info, "max", None)
    if least is not None and read < least:
        raise MoecastError(f"must be at least {least}", file=file, field=field, value=value)
    if most is not None and read > most:
        raise MoecastError(f"must be at most {most}", file=file, field=field, value=value)
    return read


def _as(kind: type, value: object) -> Any:
    """The value in this type, None where it is of another."""
    if isinstance(value, bool) or kind is bool:
        return value if isinstance(value, bool) and kind is bool else None
    if kind is float:
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
    if kind is int:
        return value if isinstance(value, int) else None
    return kind(value) if isinstance(value, str) and value else None


def _topics_text(value: object) -> object:
    """Topics as the option has them; a file may list them, or give their weights."""
    if isinstance(value, Mapping):
        return ",".join(f"{name}={weight}" for name, weight in value.items())
    if isinstance(value, list):
        return ",".join(map(str, value))
    return value


def parse_text(name: str, text: str, *, field: str) -> Any:
    """Read the text of a `--set` or a `--vary`; `null` takes a value back.

    Raises
    ------
    MoecastError
        It is no value of the field.
    """
    value: object = text
    with contextlib.suppress(ValueError, KeyError):
        value = None if text == "null" else _READERS.get(declared(name)[0], str)(text)
    return read_value(name, value, field=field)


def read_question_file(path: Path) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Read a question file: its fields by option, and the fields that vary where it is a sweep.

    Files that it names are looked for beside it first.

    Raises
    ------
    MoecastError
        It is not YAML, or holds a field that a question does not have, or a value that the field
        cannot.
    """
    from moecast.yaml_text import read_mapping

    given = read_mapping(path, what="a question file is a mapping of fields", limit_bytes=MOST_BYTES)
    varied = given.pop("vary", None) or {}
    values: dict[str, Any] = {}
    for field, value in _flat(given, path):
        name = find_field(field, file=path, value=value)
        values[name] = _beside(name, read_value(name, value, file=path, field=field), path.parent)
    if not isinstance(varied, dict):
        raise MoecastError("names fields, each with a list of its values", file=path, field="vary")
    return values, dict(_varied(varied, path))


def _varied(varied: Mapping[str, Any], path: Path) -> Iterable[tuple[str, list[Any]]]:
    for field, listed in _flat(varied, path):
        name = find_field(field, file=path)
        if not isinstance(listed, list) or not listed:
            raise MoecastError("lists its values", file=path, field=f"vary.{field}", value=listed)
        yield (
            name,
            [_beside(name, read_value(name, value, file=path, field=f"vary.{field}"), path.parent) for value in listed],
        )


def _flat(given: Mapping[str, Any], path: Path) -> Iterable[tuple[str, Any]]:
    for key, value in given.items():
        if key not in (*SECTIONS, *(section.name for section in OWN_SECTIONS)):
            yield key, value
        elif isinstance(value, dict):
            yield from ((f"{key}.{inner}", found) for inner, found in value.items())
        elif key == "plan" and isinstance(value, str):  # a file's name alone
            yield "plan.file", value
        elif value is not None:
            rule = "is a section: a mapping of fields"
            raise MoecastError(rule, file=path, field=key, value=value)


def _names_file(name: str, value: object) -> bool:
    """Whether a field's value is the name of a file, and not of a preset."""
    if name in ("trace", "load", "plan"):
        return not str(value).startswith("shipped")
    return name in ("cluster", "model", "dims") and ("/" in str(value) or bool(Path(str(value)).suffix))


def _beside(name: str, value: Any, folder: Path) -> Any:
    if value is None or not _names_file(name, value) or not (folder / value).exists():
        return value
    return type(value)(folder / value)


def _from_folder(name: str, value: Any, folder: Path) -> Any:
    """A value as a question file in this folder holds it: files by their way from there."""
    if _names_file(name, value) and Path(value).exists():
        return os.path.relpath(value, folder) if not Path(value).is_absolute() else str(value)
    return str(value) if isinstance(value, Path) else value


def write_question_file(
    asked: Asked,
    path: Path,
    *,
    own: Mapping[str, Any] | None = None,
    varied: Mapping[str, Sequence[Any]] | None = None,
    names: Collection[str] | None = None,
) -> None:
    """Write what is asked as a question file, every field that has a value.

    Parameters
    ----------
    own, varied
        Sections of the command's own, by name, and the fields of which several values are asked.
    names
        Only these of the question's fields; None: all.

    Raises
    ------
    MoecastError
        The folder does not exist or cannot be written.
    """
    import yaml

    from moecast.files import write_text

    held: dict[str, Any] = {}
    for name in field_names() if names is None else names:
        value = getattr(asked, name)
        if value is not None:
            section, _, last = dotted(name).rpartition(".")
            place = held.setdefault(section, {}) if section else held
            place[last] = _from_folder(name, value, path.parent)
    for name, section in (own or {}).items():
        if values := {field: value for field, value in asdict(section).items() if value is not None}:
            held[name] = values
    if varied:
        held["vary"] = {
            dotted(name): [_from_folder(name, value, path.parent) for value in values]
            for name, values in varied.items()
        }
    write_text(path, yaml.safe_dump(held, sort_keys=False, allow_unicode=True, width=1000))
