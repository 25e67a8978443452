"""Which element type the matrices of each part of a model have, by the names that a checkpoint gives its modules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from moecast.sim import element_types
from moecast.sim.configs.patterns import Names

MOST_PROBED = 128  # layers of one part whose names are looked up
STEMS = ("model.layers", "backbone.layers")
NESTED_STEMS = ("model.language_model.layers", "language_model.model.layers", "language_model.layers", "model.layers")


def _spelled(blocks: Sequence[str], *words: str) -> tuple[str, ...]:
    return tuple(f"{block}.{word}" for block in blocks for word in words)


_ROUTED = tuple(f"{block}.experts" for block in ("mlp", "block_sparse_moe", "feed_forward", "moe", "mixer"))
_SHARED = (
    "mlp.shared_experts", "mlp.shared_expert", "mlp.shared_mlp", "feed_forward.shared_expert", "mixer.shared_experts",
    "block_sparse_moe.shared_experts", "share_expert", "shared_mlp",
)  # fmt: skip
_DENSE = ("mlp", "feed_forward", "mixer")
_GATE, _UP, _DOWN = ("gate_proj", "gate_up_proj"), ("up_proj", "gate_up_proj"), ("down_proj",)
# Of each part its matrices, each under all the names that checkpoints have for it.
MODULES: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "experts": (
        _spelled(_ROUTED, "0.gate_proj", "0.w1", "gate_up_proj"),
        _spelled(_ROUTED, "0.up_proj", "0.w3", "gate_up_proj"),
        _spelled(_ROUTED, "0.down_proj", "0.w2", "down_proj"),
    ),
    "shared": tuple(_spelled(_SHARED, *words) for words in (_GATE, _UP, _DOWN)),
    "dense": tuple(_spelled(_DENSE, *words) for words in (_GATE, _UP, _DOWN)),
    "attention": (
        ("self_attn.q_proj", "self_attn.q_b_proj", "self_attn.qkv_proj", "attn.q_proj", "mixer.q_proj"),
        ("self_attn.v_proj", "self_attn.kv_b_proj", "self_attn.qkv_proj", "attn.v_proj", "mixer.v_proj"),
        ("self_attn.o_proj", "attn.o_proj", "attn.out_proj", "mixer.o_proj"),
    ),
    "linear": (
        (
            "linear_attn.in_proj_qkvz",
            "linear_attn.in_proj_qkv",
            "self_attn.q_proj",
            "mixer.in_proj",
            "mamba.in_proj",
            "self_attn.qkv_proj",
            "conv.in_proj",
        ),
        (
            "linear_attn.out_proj",
            "self_attn.o_proj",
            "self_attn.out_proj",
            "mixer.out_proj",
            "mamba.out_proj",
            "conv.out_proj",
        ),
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Modules by their names, and the element type of their weights."""

    names: Names
    type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """How a checkpoint is quantised: the first rule that means a module says its type, else it has `rest`."""

    rules: tuple[Rule, ...]
    rest: str
    stems: tuple[str, ...] = STEMS

    def type_of(self, spellings: Sequence[str]) -> str:
        """Type of a module that goes by one of these names."""
        return next((rule.type for rule in self.rules if any(name in rule.names for name in spellings)), self.rest)

    def types_of(self, part: str, layers: Sequence[int]) -> Counter[str]:
        """How many of the matrices of a part are of which type, over some hidden layers."""
        if not any(rule.names.tells_layers_apart for rule in self.rules):
            layers_probed, times = layers[:1], len(layers)
        else:
            layers_probed, times = layers[:: -(-len(layers) // MOST_PROBED) or 1], 1
        return Counter(
            kind
            for layer in layers_probed
            for spellings in MODULES[part]
            for kind in times * [self.type_of([f"{stem}.{layer}.{word}" for stem in self.stems for word in spellings])]
        )


SMALL = 0.1  # a share of a part's matrices that does not count


def priced_type(counted: Counter[str]) -> str | None:
    """The one type of a part: what nine in ten of its matrices have, else the largest; None: the part has none."""
    kinds = [kind for kind, count in counted.items() if count >= SMALL * counted.total()]
    return max(kinds, key=element_types.weight_bytes, default=None)


def is_mixed(counted: Counter[str]) -> bool:
    """Whether no type has nine in ten of a part's matrices."""
    return sum(count >= SMALL * counted.total() for count in counted.values()) > 1
