"""Ai2's OLMoE."""

from moecast.sim.models.preset import ModelPreset

OLMOE_1B_7B = ModelPreset(
    source="config.json of allenai/OLMoE-1B-7B-0924; 6.9 B parameters, 1.3 B active (arXiv 2409.02060)",
    total_parameters=6.92e9,
    active_parameters=1.28e9,
    config={
        "model_type": "olmoe",
        "hidden_size": 2048,
        "intermediate_size": 1024,
        "num_hidden_layers": 16,
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "vocab_size": 50304,
        "tie_word_embeddings": False,
    },
)
