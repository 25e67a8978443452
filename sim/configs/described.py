"""A quantisation as a config describes it: typed look-ups that name file, field and value, and rules for modules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any

from moecast.errors import MoecastError
from moecast.sim.configs.modules import Rule
from moecast.sim.configs.patterns import Names
from moecast.sim.configs.reader import Reader

SKIPPED = (
    "ignore",
    "exclude",
    "exclude_modules",
    "modules_to_not_convert",
    "ignored_layers",
    "modules_to_not_quantize",
)
WHERE = "quantization_config"
MOST_RULES = 100


class Described:
    """A quantisation as a config describes it, with typed look-ups."""

    def __init__(self, reader: Reader, config: object, plain: str, *, where: str = WHERE) -> None:
        self.reader, self.plain, self.where = reader, plain, where
        if not isinstance(config, Mapping):
            raise reader.error("must be an object", where, config)
        self.config = dict(config)

    def error(self, rule: str, field: str, value: object = None) -> MoecastError:
        """Name the file and the field."""
        return self.reader.error(rule, f"{self.where}.{field}" if field else self.where, value)

    def left_out(self) -> Rule:
        """What keeps the checkpoint's own type."""
        return self.rule("", [name for field in SKIPPED for name in self.strings(field)], self.plain)

    def rule(self, field: str, names: Iterable[str], kind: str) -> Rule:
        """Modules of these names have this type."""
        try:
            return Rule(names=Names(names), type=kind)
        except ValueError as error:
            raise self.error(str(error), field) from error

    def rules(self, field: str, kinds: Iterable[tuple[str, str]]) -> list[Rule]:
        """Modules by name, and the type of each; neighbours of one type together."""
        runs = [(kind, [name for name, _ in run]) for kind, run in groupby(kinds, key=lambda pair: pair[1])]
        if len(runs) > MOST_RULES:
            raise self.error(f"changes between types more than {MOST_RULES} times", field)
        return [self.rule(field, names, kind) for kind, names in runs]

    def strings(self, field: str) -> list[str]:
        """A list of names; what is no string in it means nothing to the libraries either, and is refused."""
        value = self.config.get(field)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise self.error("must be a list of names", field, value)
        return value

    def table(self, field: str) -> Mapping[str, Any]:
        """An object; empty where there is none."""
        value = self.config.get(field)
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise self.error("must be an object", field, value)
        return value
