"""Qwen3's Mixture-of-Experts models."""

from moecast.sim.models.preset import ModelPreset

QWEN3_30B_A3B = ModelPreset(
    source="config.json of Qwen/Qwen3-30B-A3B; 30.5 B parameters, 3.3 B activated (its model card)",
    total_parameters=30.5e9,
    active_parameters=3.3e9,
    config={
        "model_type": "qwen3_moe",
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "moe_intermediate_size": 768,
        "num_hidden_layers": 48,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "use_sliding_window": False,
        "sliding_window": None,
        "vocab_size": 151936,
        "tie_word_embeddings": False,
    },
)

QWEN3_235B_A22B = ModelPreset(
    source="config.json of Qwen/Qwen3-235B-A22B; 235 B parameters, 22 B activated (its model card)",
    total_parameters=235e9,
    active_parameters=22e9,
    config={
        "model_type": "qwen3_moe",
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "moe_intermediate_size": 1536,
        "num_hidden_layers": 94,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "num_attention_heads": 64,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "use_sliding_window": False,
        "sliding_window": None,
        "vocab_size": 151936,
        "tie_word_embeddings": False,
    },
)
