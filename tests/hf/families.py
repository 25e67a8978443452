"""Every model family that is tested: how to build a tiny one, and the routing rule its makers published.

The rules are written here anew from what each router's input and weights are; nothing is taken from the capture.
Axes: T token, E expert, K choice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn

HIDDEN, VOCABULARY = 32, 64
NONE = 65535
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MLA = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
GROUPS = {"n_group": 4, "topk_group": 2}
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}
Rule = Callable[[np.ndarray, np.ndarray, int], list[set[int]]]  # logits [T, E], bias [E], K -> a set for each token


def top(scores_TE: np.ndarray, choices: int) -> list[set[int]]:
    return [set(np.argsort(-row)[:choices].tolist()) for row in scores_TE]


def highest_logit(logits_TE: np.ndarray, _bias_E: np.ndarray, choices: int) -> list[set[int]]:
    """Softmax then top-k, top-k then softmax, sigmoid then top-k: all choose the highest logits."""
    return top(logits_TE, choices)


def biased_sigmoid(logits_TE: np.ndarray, bias_E: np.ndarray, choices: int) -> list[set[int]]:
    return top(1 / (1 + np.exp(-logits_TE)) + bias_E, choices)


def softmax(logits_TE: np.ndarray) -> np.ndarray:
    exp_TE = np.exp(logits_TE - logits_TE.max(1, keepdims=True))
    return exp_TE / exp_TE.sum(1, keepdims=True)


def biased_softmax(logits_TE: np.ndarray, bias_E: np.ndarray, choices: int) -> list[set[int]]:
    return top(softmax(logits_TE) + bias_E, choices)


def limited(scores_TE: np.ndarray, group_scores: Callable[[np.ndarray], np.ndarray], choices: int) -> list[set[int]]:
    """The best `topk_group` of `n_group` groups, then the best experts in them."""
    chosen = []
    for row in scores_TE:
        groups = row.reshape(GROUPS["n_group"], -1)
        allowed = np.argsort(-group_scores(groups))[: GROUPS["topk_group"]]
        masked = np.full_like(groups, -np.inf)
        masked[allowed] = groups[allowed]
        chosen.append(set(np.argsort(-masked.ravel())[:choices].tolist()))
    return chosen


def best_of_group(logits_TE: np.ndarray, _bias_E: np.ndarray, choices: int) -> list[set[int]]:
    """DeepSeek-V2: a group is worth its best expert."""
    return limited(softmax(logits_TE), lambda groups: groups.max(1), choices)


def two_best_of_group(logits_TE: np.ndarray, bias_E: np.ndarray, choices: int) -> list[set[int]]:
    """DeepSeek-V3: a group is worth its two best experts, biases included."""
    scores_TE = 1 / (1 + np.exp(-logits_TE)) + bias_E
    return limited(scores_TE, lambda groups: np.sort(groups, axis=1)[:, -2:].sum(1), choices)


def two_best_probabilities_of_group(logits_TE: np.ndarray, _bias_E: np.ndarray, choices: int) -> list[set[int]]:
    """Mistral-4: a group is worth the two best of its softmax."""
    return limited(softmax(logits_TE), lambda groups: np.sort(groups, axis=1)[:, -2:].sum(1), choices)


def biased_logit(logits_TE: np.ndarray, bias_E: np.ndarray, choices: int) -> list[set[int]]:
    """Kolibri: the bias is added to the logit itself."""
    return top(logits_TE + bias_E, choices)


def zero_experts(logits_TE: np.ndarray, bias_E: np.ndarray, choices: int) -> list[set[int]]:
    """LongCat: the last experts compute nothing; the trace has no choice there."""
    return [{i for i in row if i < 8} for row in biased_softmax(logits_TE, bias_E, choices)]


def skip_expert(logits_TE: np.ndarray, bias_E: np.ndarray, choices: int) -> list[set[int]]:
    """Zaya: the expert after the last skips the layer."""
    return [{i for i in row if i < 8} for row in biased_softmax(logits_TE, bias_E, choices)]


@dataclass(frozen=True, kw_only=True)
class Family:
    """How to build a tiny model of a family, and what its router must choose."""

    name: str
    prefix: str
    config: dict[str, Any] = field(default_factory=dict)
    rule: Rule = highest_logit
    layer_ids: tuple[int, ...] = (0, 1, 2)
    experts: int = 8
    choices: int = 2
    model_suffix: str = "ForCausalLM"
    config_suffix: str = "Config"
    common: bool = True
    logits_from_output: bool = False

    def build(self) -> transformers.PreTrainedModel:
        """A random model whose router weights and biases are large enough to matter."""
        if not hasattr(transformers, self.prefix + self.model_suffix):
            pytest.skip(f"transformers {transformers.__version__} has no {self.prefix}{self.model_suffix}")
        torch.manual_seed(0)
        values = ({**COMMON} if self.common else {}) | self.config
        config = getattr(transformers, self.prefix + self.config_suffix)(**values)
        model = getattr(transformers, self.prefix + self.model_suffix)(config).eval()
        generator = torch.Generator().manual_seed(1)
        for router in routers(model):
            for name, tensor in [*router.named_parameters(), *bias_owner(router, model).items()]:
                if "bias" in name or tensor.dim() > 1:
                    tensor.data.normal_(0, 0.3, generator=generator)
        model.generation_config.eos_token_id = None
        model.generation_config.pad_token_id = 0
        model.generation_config.suppress_tokens = [0, 1, 2]
        return model


def blocks(model: nn.Module) -> list[nn.Module]:
    """Modules that hold a router and experts, in the order of the layers."""
    return [
        module
        for module in model.modules()
        if hasattr(module, "experts") and (hasattr(module, "gate") or hasattr(module, "router"))
    ]


def router_of(block: nn.Module) -> nn.Module:
    return block.router if hasattr(block, "router") else block.gate


def routers(model: nn.Module) -> list[nn.Module]:
    return [router_of(block) for block in blocks(model)]


def bias_owner(router: nn.Module, model: nn.Module) -> dict[str, torch.Tensor]:
    """The correction bias of a router by name, wherever the model keeps it."""
    (block,) = [block for block in blocks(model) if router_of(block) is router]
    named = {**dict(router.named_parameters()), **dict(router.named_buffers())}
    named |= dict(block.named_buffers(recurse=False)) | dict(block.named_parameters(recurse=False))
    words = ("e_score_correction_bias", "expert_bias", "balancing_biases")
    return {name: tensor for name, tensor in named.items() if name.endswith(words)}


def logits_and_bias(router: nn.Module, model: nn.Module, hidden: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Router logits [T, E] from the router's input and its weights alone, and the correction bias [E]."""
    weights = [p for p in router.parameters() if p.dim() == 2 and p.shape[1] == hidden.shape[-1]]
    logits_TE = hidden.reshape(-1, hidden.shape[-1]).double() @ weights[0].double().T
    own = dict(router.named_parameters(recurse=False)).get("bias")
    if own is not None:
        logits_TE = logits_TE + own.double()
    biases = list(bias_owner(router, model).values())
    bias_E = biases[0].double().squeeze().numpy() if biases else np.zeros(logits_TE.shape[1])
    return logits_TE.detach().numpy(), bias_E


QWEN = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LOCAL = {"num_local_experts": 8, "num_experts_per_tok": 2}
ROUTED = {"n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_shared_experts": 1}
DENSE_FIRST = {"first_k_dense_replace": 1}
SPARSE_AFTER_FIRST = {"mlp_layer_types": ["dense", "sparse", "sparse"]}
INDEXER = {"index_topk": 4, "index_head_dim": 8, "index_n_heads": 2}

FAMILIES = [
    Family(name="mixtral", prefix="Mixtral", config=LOCAL),
    Family(name="qwen2-moe", prefix="Qwen2Moe", config=QWEN | {"shared_expert_intermediate_size": 16}),
    Family(name="qwen3-moe", prefix="Qwen3Moe", config=QWEN | {"mlp_only_layers": [1]}, layer_ids=(0, 2)),
    Family(name="qwen3-next", prefix="Qwen3Next", config=QWEN | LINEAR | {"shared_expert_intermediate_size": 16}),
    Family(name="olmoe", prefix="Olmoe", config={"num_experts": 8, "num_experts_per_tok": 3}, choices=3),
    Family(
        name="deepseek-v2",
        prefix="DeepseekV2",
        config=ROUTED | MLA | DENSE_FIRST | {"topk_method": "greedy", "num_key_value_heads": 4},
        layer_ids=(1, 2),
    ),
    Family(
        name="deepseek-v2-groups",
        prefix="DeepseekV2",
        config=ROUTED
        | MLA
        | DENSE_FIRST
        | GROUPS
        | {"topk_method": "group_limited_greedy", "num_key_value_heads": 4, "num_experts_per_tok": 3},
        layer_ids=(1, 2),
        choices=3,  # more than groups allowed, without which the groups would change nothing
        rule=best_of_group,
    ),
    Family(
        name="deepseek-v3",
        prefix="DeepseekV3",
        config=ROUTED | MLA | DENSE_FIRST | GROUPS | {"num_key_value_heads": 4},
        layer_ids=(1, 2),
        rule=two_best_of_group,
    ),
    Family(
        name="gpt-oss",
        prefix="GptOss",
        config=LOCAL | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    ),
    Family(
        name="glm-4-moe",
        prefix="Glm4Moe",
        config=ROUTED | DENSE_FIRST | GROUPS,
        layer_ids=(1, 2),
        rule=two_best_of_group,
    ),
    Family(name="granite-moe", prefix="GraniteMoe", config=LOCAL),
    Family(
        name="jamba",
        prefix="Jamba",
        config={
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "attn_layer_period": 3,
            "attn_layer_offset": 1,
            "num_hidden_layers": 4,
            "mamba_d_state": 4,
            "mamba_dt_rank": 4,
        },
        layer_ids=(1, 3),
    ),
    Family(
        name="dbrx",
        prefix="Dbrx",
        common=False,
        config={
            "vocab_size": VOCABULARY,
            "d_model": HIDDEN,
            "n_heads": 4,
            "n_layers": 3,
            "max_seq_len": 64,
            "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8},
            "ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": 8, "moe_top_k": 2, "hidden_size": HIDDEN},
        },
    ),
    Family(name="phimoe", prefix="Phimoe", config=LOCAL),
    Family(
        name="ernie-4.5-moe",
        prefix="Ernie4_5_Moe",
        config={"moe_num_experts": 8, "moe_k": 2, "moe_intermediate_size": 16, "moe_layer_start_index": 1},
        layer_ids=(1, 2),
        rule=biased_softmax,
    ),
    Family(name="minimax-m2", prefix="MiniMaxM2", config=LOCAL, rule=biased_sigmoid),
    Family(
        name="llama-4",
        prefix="Llama4",
        config_suffix="TextConfig",
        config=LOCAL | {"interleave_moe_layer_step": 2, "num_hidden_layers": 4, "intermediate_size_mlp": 16},
        layer_ids=(1, 3),
    ),
    Family(name="qwen3.5-moe", prefix="Qwen3_5Moe", config_suffix="TextConfig", config=QWEN | LINEAR),
    Family(
        name="hunyuan-v1-moe",
        prefix="HunYuanMoEV1",
        config={"num_experts": 8, "moe_topk": [1, 2, 2], "num_hidden_layers": 3},
    ),
    Family(
        name="dots1", prefix="Dots1", config=ROUTED | DENSE_FIRST | GROUPS, layer_ids=(1, 2), rule=two_best_of_group
    ),
    Family(name="flex-olmo", prefix="FlexOlmo", config={"num_experts": 8, "num_experts_per_tok": 2}),
    Family(
        name="lfm2-moe",
        prefix="Lfm2Moe",
        config={
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "num_dense_layers": 1,
            "moe_intermediate_size": 16,
            "layer_types": ["conv", "full_attention", "conv"],
        },
        layer_ids=(1, 2),
        rule=biased_sigmoid,
    ),
    Family(name="minimax", prefix="MiniMax", config=LOCAL),
    Family(
        name="longcat-flash",
        prefix="LongcatFlash",
        config=MLA
        | {
            "n_routed_experts": 8,
            "zero_expert_num": 4,
            "moe_topk": 3,
            "expert_ffn_hidden_size": 16,
            "ffn_hidden_size": 16,
            "num_layers": 2,
            "num_hidden_layers": 4,
            "num_key_value_heads": 4,
        },
        layer_ids=(0, 1),
        choices=3,
        rule=zero_experts,
    ),
    Family(
        name="zaya",
        prefix="Zaya",
        config={"num_experts": 8, "num_experts_per_tok": 1, "moe_intermediate_size": 16, "router_hidden_size": 8},
        choices=1,
        rule=skip_expert,
        logits_from_output=True,
    ),
    Family(
        name="nemotron-h",
        prefix="NemotronH",
        config=ROUTED
        | GROUPS
        | {
            "layers_block_type": ["mamba", "moe", "attention", "moe"],
            "num_hidden_layers": 4,
            "mamba_num_heads": 4,
            "mamba_head_dim": 8,
            "ssm_state_size": 8,
            "n_groups": 2,
            "moe_shared_expert_intermediate_size": 16,
        },
        layer_ids=(1, 3),
        rule=two_best_of_group,
    ),
    Family(
        name="afmoe",
        prefix="Afmoe",
        config=QWEN | {"num_dense_layers": 1, "num_shared_experts": 1},
        layer_ids=(1, 2),
        rule=biased_sigmoid,
    ),
    Family(
        name="glm-4-moe-lite",
        prefix="Glm4MoeLite",
        config=ROUTED | MLA | GROUPS | {"num_key_value_heads": 4, "mlp_layer_types": ["dense", "sparse", "sparse"]},
        layer_ids=(1, 2),
        rule=two_best_of_group,
    ),
    Family(name="granite-moe-shared", prefix="GraniteMoeShared", config=LOCAL | {"shared_intermediate_size": 16}),
    Family(
        name="granite-moe-hybrid",
        prefix="GraniteMoeHybrid",
        config=LOCAL
        | {
            "shared_intermediate_size": 16,
            "layer_types": ["mamba", "attention", "mamba"],
            "mamba_n_heads": 8,
            "mamba_d_head": 8,
            "mamba_d_state": 8,
            "mamba_n_groups": 1,
        },
    ),
    Family(name="solar-open", prefix="SolarOpen", config=ROUTED | GROUPS, rule=two_best_of_group),
    Family(name="hy-v3", prefix="HYV3", config=QWEN, layer_ids=(1, 2), rule=biased_sigmoid),
    Family(name="exaone-moe", prefix="ExaoneMoe", config=QWEN | GROUPS, layer_ids=(1, 2), rule=two_best_of_group),
    Family(
        name="qwen3-vl-moe",
        prefix="Qwen3VLMoe",
        model_suffix="ForConditionalGeneration",
        common=False,
        config={
            "text_config": COMMON
            | QWEN
            | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}},
            "vision_config": {
                "depth": 1,
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_heads": 2,
                "out_hidden_size": HIDDEN,
                "num_position_embeddings": 16,
                "deepstack_visual_indexes": [],
            },
        },
    ),
    Family(name="cohere2-moe", prefix="Cohere2Moe", config=QWEN | SPARSE_AFTER_FIRST, layer_ids=(1, 2)),
    Family(
        name="deepseek-v3.2",
        prefix="DeepseekV32",
        config=ROUTED | MLA | GROUPS | SPARSE_AFTER_FIRST | INDEXER | {"num_key_value_heads": 4},
        layer_ids=(1, 2),
        rule=two_best_of_group,
    ),
    Family(
        name="glm-moe-dsa",
        prefix="GlmMoeDsa",
        config=ROUTED | MLA | GROUPS | SPARSE_AFTER_FIRST | INDEXER | {"num_key_value_heads": 4},
        layer_ids=(1, 2),
        rule=two_best_of_group,
    ),
    Family(
        name="mimo-v2-flash",
        prefix="MiMoV2Flash",
        config=ROUTED | GROUPS | SPARSE_AFTER_FIRST | {"v_head_dim": 8},
        layer_ids=(1, 2),
        rule=two_best_of_group,
    ),
    Family(
        name="ax-k1",
        prefix="AXK1",
        config=ROUTED | MLA | GROUPS | SPARSE_AFTER_FIRST | {"num_key_value_heads": 4},
        layer_ids=(1, 2),
        rule=two_best_of_group,
    ),
    Family(
        name="mistral-4",
        prefix="Mistral4",
        config=ROUTED
        | MLA
        | GROUPS
        | DENSE_FIRST
        | {"num_key_value_heads": 4, "num_experts_per_tok": 3, "head_dim": 16},
        layer_ids=(1, 2),
        choices=3,
        rule=two_best_probabilities_of_group,
    ),
    Family(
        name="laguna",
        prefix="Laguna",
        config=QWEN | SPARSE_AFTER_FIRST | {"shared_expert_intermediate_size": 16},
        layer_ids=(1, 2),
        rule=biased_sigmoid,
    ),
    Family(name="mellum", prefix="Mellum", config=QWEN | SPARSE_AFTER_FIRST, layer_ids=(1, 2)),
    Family(name="granite-moe-swa", prefix="GraniteMoeSWA", config=LOCAL | {"shared_intermediate_size": 16}),
    Family(
        name="flint",
        prefix="Flint",
        config=QWEN | {"mlp_only_layers": [0], "shared_expert_intermediate_size": 16},
        layer_ids=(1, 2),
    ),
    Family(
        name="kolibri",
        prefix="Kolibri1",
        config=QWEN | {"shared_expert_intermediate_size": 16},
        rule=biased_logit,
    ),
    Family(
        name="gemma-4",
        prefix="Gemma4",
        config_suffix="TextConfig",
        config={
            "enable_moe_block": True,
            "num_experts": 8,
            "top_k_experts": 2,
            "moe_intermediate_size": 16,
            "hidden_size_per_layer_input": 0,
            "global_head_dim": 8,
        },
    ),
]
