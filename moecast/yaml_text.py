"""YAML from strangers: aliases are counted before they are followed, keys stand once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from moecast.errors import MoecastError
from moecast.files import read_text

# as a reader would walk them, aliases followed; 60 layers of 2304 slots are 140 thousand
MAX_NODES = 1 << 23

# ten times faster, where PyYAML was built with it
_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def load_yaml(text: str) -> Any:
    """Read one YAML document.

    Raises
    ------
    yaml.YAMLError
        Not YAML, several documents, a key that stands twice or is a list, an alias of what holds
        it, or aliases that stand for more than `MAX_NODES` values.
    RecursionError, ValueError
        Nested too deep; a number or a date that there is not.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, {}, set())
        return loader.construct_document(node)
    finally:
        loader.dispose()


def read_mapping(path: Path, *, what: str, limit_bytes: int) -> dict[str, Any]:
    """Read a YAML file that holds a mapping of words.

    `what` is the rule where it holds something else.

    Raises
    ------
    MoecastError
        The file cannot be read, is not YAML, or holds no such mapping.
    """
    try:
        value = load_yaml(read_text(path, limit_bytes=limit_bytes))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}" if mark else None
        rule = f"is not YAML ({error.problem or error.context})"
        raise MoecastError(rule, file=path, field=where) from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise MoecastError(f"is not YAML ({type(error).__name__})", file=path) from error
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise MoecastError(what, file=path)
    return value


def _count(node: yaml.Node, known: dict[int, int], above: set[int]) -> int:
    if isinstance(node, yaml.ScalarNode):
        return 1
    key = id(node)
    if key in above:
        raise yaml.MarkedYAMLError(problem="an alias stands inside what it names", problem_mark=node.start_mark)
    if key not in known:
        above.add(key)
        children = node.value
        if isinstance(node, yaml.MappingNode):
            children = [child for pair in node.value for child in pair]
        known[key] = 1 + sum(_count(child, known, above) for child in children)
        above.discard(key)
    if known[key] > MAX_NODES:
        rule = f"aliases stand for more than {MAX_NODES} values"
        raise yaml.MarkedYAMLError(problem=rule, problem_mark=node.start_mark)
    return known[key]


class _Loader(_SafeLoader):  # type: ignore[misc]  # which of the two is known only when it runs
    """YAML in which a key that stands twice is an error, and not the last one's word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key must be a word or a number", problem_mark=key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value!r} stands twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return dict(super().construct_mapping(node, deep))

    def number(self, node: yaml.ScalarNode) -> Any:
        """A number as it looks: to YAML 1.1, 2:1 is 121 and 010 is 8."""
        if ":" in node.value or re.match(r"[-+]?0[0-9_b]", node.value):
            rule = f"{node.value!r} is no decimal number; if text is meant, put it in quotes"
            raise yaml.MarkedYAMLError(problem=rule, problem_mark=node.start_mark)
        return (self.construct_yaml_int if node.tag.endswith(":int") else self.construct_yaml_float)(node)


for _tag in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _Loader.number)
