"""Reading a Hugging Face `config.json` by what it says, whatever the family is called.

Every quantity is looked for under all the names that configs use for it; a quantity that is
missing, or of a kind that is not priced, is refused by its field. What a name means is the same in
all families that use it, with the exceptions that stand in `_of_family`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moecast.sim.attention_shape import AttentionShape
from moecast.sim.configs.attention import Mixers, read_mixers
from moecast.sim.configs.fields import FIELDS_OF
from moecast.sim.configs.layers import hidden_layers, moe_layers, no_mlp_layers
from moecast.sim.configs.names import HIDDEN, KV_RANK, Q_RANK, WINDOW
from moecast.sim.configs.reader import BY_LAYER, PUBLISHED, Reader
from moecast.sim.configs.types import read_types

EXPERTS = (
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
    "moe_num_experts",
    "num_routed_experts",
    "moe_num_primary_experts",  # SmallThinker
)
CHOICES = (
    "num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk", "moe_top_k", "experts_per_token",
    # Gemma-4, Grok-1, SmallThinker
    "top_k_experts", "num_selected_experts", "moe_num_active_primary_experts",
)  # fmt: skip
EXPERT_WIDTH = (
    "moe_intermediate_size",
    "expert_ffn_hidden_size",
    "moe_ffn_hidden_size",
    "expert_intermediate_size",
    "moe_ffn_intermediate_size",
    "expert_hidden_dim",
)
MLP_WIDTH = ("intermediate_size", "ffn_hidden_size", "ffn_dim", "n_inner")
DENSE_WIDTH = ("intermediate_size_mlp", "dense_intermediate_size", "prefix_dense_intermediate_size", *MLP_WIDTH)
SHARED_COUNT = ("n_shared_experts", "num_shared_experts", "num_shared_expert", "moe_num_shared_experts")
SHARED_WIDTH = (
    "shared_expert_intermediate_size",
    "shared_experts_intermediate_size",
    "moe_shared_expert_intermediate_size",
    "shared_intermediate_size",
    "share_expert_dim",
    "share_expert_dims",
)
GROUPS, GROUPS_PER_TOKEN = ("n_group", "num_expert_group"), ("topk_group",)

# Activations of MLPs without a gate.
_UNGATED = frozenset({"relu2", "relu_squared"})


def shape_fields(
    config: Mapping[str, Any], *, file: str | Path | None = None, beside: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Read the fields of a ModelShape, its name left out.

    Parameters
    ----------
    beside
        The value of the `hf_quant_config.json` that lies beside the config, if one does.

    Raises
    ------
    MoecastError
        A field that is missing or wrong, or says what cannot be priced.
    """
    reader = Reader(config, file)
    experts = reader.whole(EXPERTS)  # a dense model's config is refused for what it lacks
    layers = hidden_layers(reader)
    moe, bare = moe_layers(reader, layers), no_mlp_layers(reader, layers)
    mixers = read_mixers(reader, layers)
    fields = {
        "hidden": reader.whole(HIDDEN),
        "n_layers": layers,
        "moe_layer_ids": moe,
        "no_mlp_layers": bare,
        "experts": experts,
        "choices": reader.whole(CHOICES),
        "expert_intermediate": _expert_width(reader),
        "dense_intermediate": _dense_width(reader) if len(moe) + len(bare) < layers else 0,
        **_shared(reader),
        "attention": mixers.attention,
        "more_attention": mixers.more_attention,
        "mixer_of_layer": mixers.mixer_of_layer,
        "vocab": reader.whole(("vocab_size",)),
        "tied_embedding": reader.flag("tie_word_embeddings", _tied(reader)),
        "gated": not {reader.word("mlp_hidden_act"), reader.word("hidden_act")} & _UNGATED,
        "expert_hidden": reader.whole(("moe_latent_size", "moe_hidden_size"), 0),
        **_groups(reader),
    }
    fields |= _of_family(reader, fields)
    _check_unread(reader)
    return fields | read_types(reader, beside, _layers_of(fields, mixers))


_TELLING = re.compile(
    r"lora_(rank|dim)|(sliding|swa|attention|attn|kv|linear)\w*(layout|pattern|layer_ids)$|cross_layer|cla_|kv_shar"
    r"|compress(?!ion_config)|index_topk|sparse_attention"
    r"|(big|parallel|zero|vision|image|audio|residual|chunk)\w*expert|experts?_per_group|moe_config|ngram"
)
"""Names by which configs say what changes the weights or the keys of attention, or that there are more experts."""
_READ = frozenset().union(*FIELDS_OF.values(), *PUBLISHED.values(), BY_LAYER, KV_RANK, Q_RANK, WINDOW) | {
    "sliding_window_layout",
    "sliding_window_pattern",
    "local_layer_ids",
    "compress_rope_theta",
}


def _check_unread(reader: Reader) -> None:
    """Refuse what a class that is not known says of its attention or experts under a name that is not read.

    Raises
    ------
    MoecastError
        There is such a field, and it is not empty, false or 0.
    """
    if reader.known:
        return
    for name, value in reader.config.items():
        if isinstance(name, str) and value and name not in _READ and _TELLING.search(name):
            raise reader.error(
                "what this class means by it is not known, and it may change what is priced", name, value
            )


def _layers_of(fields: dict[str, Any], mixers: Mixers) -> dict[str, list[int]]:
    """Which hidden layers have each of the parts that quantisation tells apart."""
    moe, bare, layers = set(fields["moe_layer_ids"]), set(fields["no_mlp_layers"]), range(fields["n_layers"])
    kinds = (mixers.attention, *mixers.more_attention)
    number_of = mixers.mixer_of_layer or (0,) * len(layers)
    mixed = [(layer, kinds[index]) for layer, index in zip(layers, number_of, strict=False) if index >= 0]
    return {
        "experts": sorted(moe),
        "shared": sorted(moe) if fields["shared_intermediate"] else [],
        "dense": [layer for layer in layers if layer not in moe and layer not in bare],
        "attention": [layer for layer, mixer in mixed if isinstance(mixer, AttentionShape)],
        "linear": [layer for layer, mixer in mixed if not isinstance(mixer, AttentionShape)],
    }


def _expert_width(reader: Reader) -> int:
    """Width of a routed expert; under the name of the MLP's where the config has no other."""
    found = reader.first(EXPERT_WIDTH)
    if found is not None and isinstance(found[1], list) and "vl" in reader.model_type:  # ERNIE's: a width of each set
        raise reader.error("experts of pictures beside those of text cannot be priced", found[0], found[1])
    return reader.whole(EXPERT_WIDTH if found is not None else (*EXPERT_WIDTH, *MLP_WIDTH))


def _dense_width(reader: Reader) -> int:
    return reader.whole(DENSE_WIDTH)


def _shared(reader: Reader) -> dict[str, int]:
    """Shared experts: so many of a routed one's width, or of a width of their own."""
    count = reader.whole(SHARED_COUNT, 0, least=0)
    width = reader.whole(SHARED_WIDTH, 0, least=0)
    if width:
        return {"shared_experts": max(count, 1), "shared_intermediate": width * max(count, 1)}
    return {"shared_experts": count, "shared_intermediate": count * _expert_width(reader)}


def _groups(reader: Reader) -> dict[str, int]:
    """Group-limited routing, where the router is of that kind (DeepSeek-V2 says so by a method)."""
    if reader.get("topk_method") == "greedy":
        return {}
    groups = reader.whole(GROUPS, 1)
    return {"expert_groups": groups, "groups_per_token": reader.whole(GROUPS_PER_TOKEN, groups)} if groups > 1 else {}


def _tied(reader: Reader) -> bool:
    """What the classes take where a config leaves it out."""
    return reader.model_type in (
        "cohere2_moe",
        "diffusion_gemma_text",
        "ernie4_5_moe",
        "ernie4_5_vl_moe_text",
        "gemma4_text",
        "lara_mini",
        "lfm2_moe",
        "zaya",
    )


def _of_family(reader: Reader, fields: dict[str, Any]) -> dict[str, Any]:
    """What some families mean beyond what their configs say, by their published code."""
    if reader.model_type in ("llama4_text", "llama4"):  # every MoE layer has one shared expert of a routed one's width
        return {"shared_experts": 1, "shared_intermediate": fields["expert_intermediate"]}
    if reader.model_type == "gemma4_text" and (width := reader.whole(("hidden_size_per_layer_input",), 256, least=0)):
        raise reader.error("embeddings for each layer are not priced", "hidden_size_per_layer_input", width)
    if reader.model_type in ("gemma4_text", "diffusion_gemma_text"):  # an MLP runs beside the experts of every layer
        return {"shared_experts": 1, "shared_intermediate": reader.whole(("intermediate_size",))}
    if reader.model_type == "hunyuan_v1_moe" and not fields["shared_intermediate"]:  # its class always has one
        return {"shared_experts": 1, "shared_intermediate": reader.whole(MLP_WIDTH)}
    if reader.flag("residual_moe", False):  # Grok-2: an MLP beside the experts
        return {"shared_experts": 1, "shared_intermediate": reader.whole(MLP_WIDTH)}
    if reader.flag("parallel_attn_mlp_res", False) or reader.flag("use_residual", False):  # Arctic's dense residual
        return {"shared_experts": 1, "shared_intermediate": reader.whole(HIDDEN)}
    if reader.model_type == "longcat_flash":
        return _shortcut(reader, fields)
    return {}


def _shortcut(reader: Reader, fields: dict[str, Any]) -> dict[str, Any]:
    """LongCat-Flash: a layer has two attentions and two MLPs, and experts beside them; here it is two hidden layers."""
    layers, dense = fields["n_layers"], reader.whole(("ffn_hidden_size", "intermediate_size"))
    return {
        "n_layers": 2 * layers,
        "moe_layer_ids": tuple(range(0, 2 * layers, 2)),
        "dense_intermediate": dense,
        "shared_experts": 1,
        "shared_intermediate": dense,
    }
