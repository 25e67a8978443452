"""YAML from strangers: what PyYAML reads is read, and bombs are counted, not followed."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from moecast.yaml_text import load_yaml

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text("abc: -#[]{}'\"\n", max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1), inner, max_size=3),
    max_leaves=12,
)


BOMB = "\n".join(["a0: &a0 [x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30))])


@given(values)
def test_plain_values_come_back(value: object) -> None:
    assert load_yaml(yaml.safe_dump(value)) == value


def test_an_alias_is_read() -> None:
    assert load_yaml("a: &x [1, 2]\nb: *x\n") == {"a": [1, 2], "b": [1, 2]}
    assert load_yaml("") is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB, "aliases"),
        ("a: &x [*x]", "inside what it names"),
        ("? [1, 2]\n: 3\n", "a key must be"),
        ("? {a: 1}\n: 3\n", "a key must be"),
        ("a: 1\na: 2\n", "stands twice"),
        ("a: [1", "expected"),
        ("a: 1\n---\nb: 1\n", "document"),
        ("oversubscription: 2:1", "'2:1' is no decimal number"),  # 121 to YAML 1.1
        ("a: 1:30.5", "is no decimal number"),
        ("nodes: 010", "'010' is no decimal number"),
        ("nodes: -0b100", "is no decimal number"),
    ],
)
def test_what_is_refused(text: str, words: str) -> None:
    with pytest.raises(yaml.YAMLError, match=words):
        load_yaml(text)
