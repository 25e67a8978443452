"""Typed look-ups in a Hugging Face `config.json`: by any of the names that families use for a quantity.

A quantity goes by many names. Where the config's class is one that transformers has, only the names
that this class defines count: a stray field of another family's means nothing to the code that runs
the model. `fields.py` lists them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moecast.errors import MoecastError
from moecast.sim.configs.fields import FIELDS_OF

MOST_LAYERS = 4096
PREDICTED = ("num_nextn_predict_layers", "num_mtp_layers")
"""Layers of multi-token prediction, which lists of layers may hold too."""
BY_LAYER = ("num_attention_heads_per_layer", "per_layer_config", "indexer_types")
"""What differs by layer. These and the former mean the same in all classes, whether the table has them or not."""
NESTED = ("text_config", "language_config", "llm_config", "thinker_config")
"""Where a model of several kinds of input keeps what describes its text."""

PUBLISHED = {
    "deepseek_v2": frozenset({"moe_layer_freq"}),
    "deepseek_v3": frozenset({"moe_layer_freq"}),
    "deepseek_v4": frozenset({
        "compress_ratios", "compress_rates", "o_groups", "o_lora_rank", "expert_dtype", "num_hash_layers",
    }),
    "mimo_v2_flash": frozenset({
        "hybrid_layer_pattern", "moe_layer_freq", "swa_num_attention_heads", "swa_num_key_value_heads",
        "swa_head_dim", "swa_v_head_dim",
    }),
    "step3p5": frozenset({
        "attention_other_setting", "moe_layers_enum", "num_attention_groups", "moe_num_experts",
        "num_sliding_attention_heads", "use_head_wise_attn_gate", "gating",
    }),
    "hunyuan_v1_moe": frozenset({
        "moe_intermediate_size", "num_shared_expert", "moe_layer_num_skipped", "use_cla", "cla_share_factor",
    }),
    "exaone_moe": frozenset({"is_moe_layer"}),
    "gemma4_text": frozenset({
        "num_kv_shared_layers", "use_double_wide_mlp", "attention_k_eq_v", "hidden_size_per_layer_input",
    }),
    "laguna": frozenset({"gating"}),
    "kimi_linear": frozenset({"linear_attn_config", "first_k_dense_replace", "moe_layer_freq"}),
    "minimax": frozenset({"attn_type_list", "shared_intermediate_size"}),
    "nemotron_h": frozenset({"hybrid_override_pattern"}),
}  # fmt: skip
"""What published configs say beside the names of transformers' class: their own code's names for the same things."""


class Reader:
    """A config, the names that its class defines, and where it was found, for errors to say."""

    def __init__(self, config: Mapping[str, Any], file: str | Path | None) -> None:
        self.file = file
        self.outer = config
        self.config = text_part(config)
        model_type = self.config.get("model_type", config.get("model_type"))
        if model_type is not None and not isinstance(model_type, str):
            raise self.error("must be a string", "model_type", model_type)
        self.model_type: str = model_type or ""
        defined = FIELDS_OF.get(self.model_type)
        self._defined = None if defined is None else defined | PUBLISHED.get(self.model_type, frozenset())

    def with_fields(self, fields: Mapping[str, Any]) -> Reader:
        """Read the same config with other values of some fields."""
        return Reader({**self.config, **fields, "model_type": self.model_type}, self.file)

    @property
    def known(self) -> bool:
        """Whether the names that the config's class defines are known."""
        return self._defined is not None

    def error(self, rule: str, field: str, value: object = None) -> MoecastError:
        """Name the file and the field."""
        return MoecastError(rule, file=self.file, field=field, value=value)

    def get(self, field: str) -> Any:
        """The value of a field that the config's class defines; None where there is none."""
        if self._defined is not None and field not in self._defined and field not in (*PREDICTED, *BY_LAYER):
            return None
        return self.config.get(field)

    def first(self, names: Sequence[str]) -> tuple[str, Any] | None:
        """The first of the names that is there, with its value."""
        return next(((name, self.get(name)) for name in names if self.get(name) is not None), None)

    def whole(self, names: Sequence[str], default: int | None = None, *, least: int = 1) -> int:
        """Read a whole number of at least `least` by any of the names.

        Of a list, one per layer, the largest.

        Raises
        ------
        MoecastError
            It is no such number; or it is missing and there is no default.
        """
        found = self.first(names)
        if found is None:
            if default is None:
                raise self.error("missing", " or ".join(names))
            return default
        name, value = found
        values = value if isinstance(value, list) and value else [value]
        if not all(isinstance(v, int) and not isinstance(v, bool) and least <= v < 2**31 for v in values):
            raise self.error(f"must be a whole number of at least {least}", name, value)
        return int(max(values))

    def flag(self, field: str, default: bool) -> bool:
        """Read a boolean."""
        value = self.get(field)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error("must be true or false", field, value)
        return value

    def word(self, field: str) -> str | None:
        """Read a string, where there is one."""
        value = self.get(field)
        if value is not None and not isinstance(value, str):
            raise self.error("must be a string", field, value)
        return value

    def listed(self, names: Sequence[str], layers: int) -> tuple[str, list[Any]] | None:
        """Read a list with an entry for each layer, by any of the names; a string is a list of letters."""
        for name in names:
            value = self.get(name)
            if not isinstance(value, (list, str)) or (isinstance(value, str) and len(value) < 2):
                continue
            more = self.whole(PREDICTED, 0, least=0)
            if len(value) not in (layers, layers + more):
                raise self.error(f"must have {layers} entries, one per layer", name, len(value))
            if not all(isinstance(entry, (str, int)) for entry in value):
                raise self.error("must be a list of words or whole numbers", name, value)
            return name, list(value)[:layers]
        return None


def text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a config that describes the model of text, with what DBRX says of its experts and heads apart."""
    text = config
    for _ in range(2):  # a thinker's text
        nested = next((text[name] for name in NESTED if isinstance(text.get(name), Mapping)), None)
        if nested is None:
            break
        # The whole model's word on its head goes before that of the part.
        tied = {"tie_word_embeddings": text["tie_word_embeddings"]} if "tie_word_embeddings" in text else {}
        quantised = {"quantization_config": text["quantization_config"]} if "quantization_config" in text else {}
        text = {**quantised, **nested, **tied}
    for part in ("ffn_config", "attn_config"):
        if isinstance(text.get(part), Mapping):
            text = {**text[part], **text, "model_type": text.get("model_type")}
    return text
