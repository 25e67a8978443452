"""Published configs with fields replaced by what does not belong there; for the tests, and for longer runs of them."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import strategies as st

from moecast.errors import MoecastError
from moecast.sim import ModelShape
from moecast.sim.configs.moe_sizes import MoeSizes
from moecast.sim.models import PRESETS
from tests.sim.published_configs import MODELS, QUANTISED

Path = tuple[str | int, ...]
SEEDS: dict[str, dict[str, Any]] = {
    **{name: config for name, (_, _, config) in MODELS.items()},
    **{name: dict(preset.config) for name, preset in PRESETS.items()},
    **QUANTISED,
}

LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 300),
    st.sampled_from((-(2**63), -1, 0, 1, 2**31 - 1, 2**31, 2**63, 10**30)),
    st.floats(),
    st.sampled_from(("", "0", "1,2", "x" * 40, "sliding_attention", "E", "M*E", "auto", "re:.*", "re:(((", "*", "[")),
    st.text(max_size=6),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


def paths(value: Any, at: Path = ()) -> list[Path]:
    """Where the fields of a config are, those of nested objects and the first entries of lists too."""
    inner = (
        list(value.items())
        if isinstance(value, dict)
        else list(enumerate(value[:3]))
        if isinstance(value, list)
        else []
    )
    return ([at] if at else []) + [path for name, part in inner for path in paths(part, (*at, name))]


@st.composite
def mutated_configs(draw: st.DrawFn) -> dict[str, Any]:
    """A published config, one to four of whose fields are replaced, left out, or moved under another's name."""
    config = copy.deepcopy(SEEDS[draw(st.sampled_from(sorted(SEEDS)))])
    for _ in range(draw(st.integers(1, 4))):
        places = paths(config)
        if not places:
            break
        *above, last = draw(st.sampled_from(places))
        parent = config
        for name in above:
            parent = parent[name]
        kind = draw(st.sampled_from(("replace", "replace", "replace", "drop", "borrow")))
        if kind == "drop":
            del parent[last]
        elif kind == "replace":
            parent[last] = draw(VALUES)
        else:  # what another field or another model says
            other = SEEDS[draw(st.sampled_from(sorted(SEEDS)))]
            source = draw(st.sampled_from(paths(other)))
            value: Any = other
            for name in source:
                value = value[name]
            parent[source[-1] if isinstance(parent, dict) else last] = copy.deepcopy(value)
    return config


def read_as_far_as_it_goes(config: dict[str, Any]) -> str | None:
    """Read a config in every way there is; the line of the error where there is one.

    Raises
    ------
    AssertionError
        The error is not one line that names its place and its rule.
    """
    try:
        MoeSizes.from_config(config, file="config.json", name="x")
    except MoecastError as error:
        _check(error)
    try:
        shape = ModelShape.from_config(config, name="x")
    except MoecastError as error:
        _check(error)
        return str(error)
    assert 0 < shape.active_parameters() <= shape.total_parameters()
    assert all(shape.kv_bytes_of(layer) >= 0 <= shape.state_bytes_of(layer) for layer in range(shape.n_layers))
    assert shape.expert_bytes > 0
    return None


def _check(error: MoecastError) -> None:
    line = str(error)
    assert "\n" not in line
    assert len(line) < 1000
    assert error.rule
    assert error.field or error.file, line
