"""Qwen3.5: three layers of gated delta networks to one of full attention."""

from moecast.sim.models.preset import ModelPreset

QWEN3_5_397B_A17B = ModelPreset(
    source="config.json of Qwen/Qwen3.5-397B-A17B, the language model; 397 B parameters, 17 B activated (its name)",
    total_parameters=397e9,
    active_parameters=17e9,
    config={
        "model_type": "qwen3_5_moe_text",
        "attn_output_gate": True,
        "hidden_size": 4096,
        "head_dim": 256,
        "layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 15,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 64,
        "linear_value_head_dim": 128,
        "mlp_only_layers": [],
        "moe_intermediate_size": 1024,
        "num_attention_heads": 32,
        "num_experts": 512,
        "num_experts_per_tok": 10,
        "num_hidden_layers": 60,
        "num_key_value_heads": 2,
        "shared_expert_intermediate_size": 1024,
        "vocab_size": 248320,
        "tie_word_embeddings": False,
    },
)
