"""Sections of a question file that one command takes: `training` (`moecast train`), `prefill` (`moecast serve`)."""

from __future__ import annotations

import typing
from dataclasses import dataclass, fields
from typing import Any

from moecast.cli.prefill_options import PrefillAsked
from moecast.cli.recipe_options import AskedRecipe


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnSection:
    """A section and the value that holds its fields.

    Parameters
    ----------
    name
        In a file; its fields are `name.field`.
    parameter
        Of the command that takes it.
    kind
        A value of options, all with defaults.
    prefix
        What a field's option has in front of the field's name.
    """

    name: str
    parameter: str
    kind: type[Any]
    prefix: str = ""

    @property
    def fields(self) -> tuple[str, ...]:
        """Dotted names of its fields."""
        return tuple(f"{self.name}.{field.name}" for field in fields(self.kind))

    def option(self, field: str) -> str:
        """The parameter that an option of a field gives: `prefill_tp` of `prefill.tp`."""
        return self.prefix + field.rpartition(".")[2]

    def annotation(self, field: str) -> Any:
        """The declared option of a field."""
        return typing.get_type_hints(self.kind, include_extras=True)[field.rpartition(".")[2]]


OWN_SECTIONS = (
    OwnSection(name="training", parameter="recipe", kind=AskedRecipe),
    OwnSection(name="prefill", parameter="apart", kind=PrefillAsked, prefix="prefill_"),
)


def own_names() -> tuple[str, ...]:
    """The fields of all of them."""
    return tuple(name for section in OWN_SECTIONS for name in section.fields)


def section_of(name: str) -> OwnSection | None:
    """Whose field a dotted name is; None: the question's own."""
    return next((section for section in OWN_SECTIONS if name in section.fields), None)


def option_of(name: str) -> str:
    """The parameter that a field's option gives."""
    section = section_of(name)
    return name if section is None else section.option(name)
