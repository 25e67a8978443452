"""Models small enough to be built anew wherever they are needed, their weights from a seed and their parameters' names.

An engine runs them to make fixtures, and the tests run them again with transformers: the same weights, the same tokens.
"""

import hashlib

import numpy as np

SIZES = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1,
    "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0,
}  # fmt: skip
MODELS = {
    "qwen3-moe": {
        "num_hidden_layers": 3, "head_dim": 32, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
        "mlp_only_layers": [1], "decoder_sparse_step": 1, "norm_topk_prob": True,
    },
    "olmoe": {"num_hidden_layers": 2, "head_dim": 32, "num_experts": 6, "num_experts_per_tok": 3},
}  # fmt: skip
"""Qwen3-MoE has a dense layer between two MoE layers."""


def tiny_model(name):
    """A transformers model on the CPU in float32; the same weights in every version of transformers."""
    import torch
    import transformers

    family = {"qwen3-moe": "Qwen3Moe", "olmoe": "Olmoe"}[name]
    sizes = SIZES | MODELS[name]
    if name == "olmoe":
        sizes |= {"hidden_size": 64}
        del sizes["head_dim"]
    config = getattr(transformers, f"{family}Config")(**sizes, dtype="float32")
    model = getattr(transformers, f"{family}ForCausalLM")(config).float().eval()
    with torch.no_grad():
        for key, value in model.named_parameters():
            rng = np.random.default_rng(list(hashlib.sha256(f"{name} {key}".encode()).digest()))
            # Norms stay near one, and everything else is large enough for routers to tell tokens apart.
            drawn = rng.standard_normal(value.shape) / np.sqrt(value.shape[-1])
            value.copy_(torch.from_numpy(1 + 0.1 * drawn if value.ndim == 1 else 2 * drawn))
    return model


def save_model(name, folder):
    """Write it as an engine loads it, with a tokenizer of numbered words."""
    import tokenizers
    import transformers

    tiny_model(name).save_pretrained(folder)
    words = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({f"w{number}": number for number in range(SIZES["vocab_size"])}, unk_token="w2")
    )
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", bos_token="w1")
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    tokenizer.save_pretrained(folder)
