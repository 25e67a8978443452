"""MiniMax's Mixture-of-Experts models."""

from moecast.sim.models.preset import ModelPreset

MINIMAX_M2_5 = ModelPreset(
    source="config.json of MiniMaxAI/MiniMax-M2.5; 229 B parameters in its checkpoint; activated: as its sizes give it",
    total_parameters=228.7e9,
    active_parameters=10.4e9,
    active_with_embedding=False,
    config={
        "model_type": "minimax_m2",
        "num_hidden_layers": 62,
        "hidden_size": 3072,
        "num_attention_heads": 48,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 1536,
        "vocab_size": 200064,
        "num_experts_per_tok": 8,
        "num_local_experts": 256,
        "tie_word_embeddings": False,
        "use_qk_norm": True,
        "quantization_config": {
            "quant_method": "fp8",
            "fmt": "float8_e4m3fn",
            "activation_scheme": "dynamic",
            "weight_block_size": [128, 128],
        },
    },
)
