"""Mistral's Mixtral."""

from moecast.sim.models.preset import ModelPreset

MIXTRAL_8X22B = ModelPreset(
    source="config.json of mistralai/Mixtral-8x22B-v0.1; 141 B parameters, 39 B active (Mistral's announcement)",
    total_parameters=140.6e9,
    active_parameters=39.1e9,
    config={
        "model_type": "mixtral",
        "hidden_size": 6144,
        "intermediate_size": 16384,
        "num_hidden_layers": 56,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "num_attention_heads": 48,
        "num_key_value_heads": 8,
        "sliding_window": None,
        "vocab_size": 32000,
        "tie_word_embeddings": False,
    },
)

MIXTRAL_8X7B = ModelPreset(
    source="config.json of mistralai/Mixtral-8x7B-v0.1; 47 B parameters, 13 B active (arXiv 2401.04088)",
    total_parameters=46.7e9,
    active_parameters=12.9e9,
    config={
        "model_type": "mixtral",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "sliding_window": None,
        "vocab_size": 32000,
        "tie_word_embeddings": False,
    },
)
