"""DeepSeek's models with multi-head latent attention."""

from moecast.sim.models.preset import ModelPreset

DEEPSEEK_V2_LITE = ModelPreset(
    source="config.json of deepseek-ai/DeepSeek-V2-Lite; 15.7 B parameters, 2.4 B activated (arXiv 2405.04434, B)",
    total_parameters=15.7e9,
    active_parameters=2.4e9,
    active_with_embedding=False,
    config={
        "model_type": "deepseek_v2",
        "hidden_size": 2048,
        "intermediate_size": 10944,
        "moe_intermediate_size": 1408,
        "num_hidden_layers": 27,
        "first_k_dense_replace": 1,
        "moe_layer_freq": 1,
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "num_experts_per_tok": 6,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "q_lora_rank": None,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "vocab_size": 102400,
        "tie_word_embeddings": False,
    },
)

DEEPSEEK_V3 = ModelPreset(
    source="config.json of deepseek-ai/DeepSeek-V3; 671 B parameters, 36.6 B activated with the LM "
    "head and without the embedding, multi-token prediction apart (its README_WEIGHTS)",
    total_parameters=671e9,
    active_parameters=36.6e9,
    active_with_embedding=False,
    config={
        "model_type": "deepseek_v3",
        "hidden_size": 7168,
        "intermediate_size": 18432,
        "moe_intermediate_size": 2048,
        "num_hidden_layers": 61,
        "first_k_dense_replace": 3,
        "moe_layer_freq": 1,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "n_group": 8,
        "topk_group": 4,
        "topk_method": "noaux_tc",
        "num_attention_heads": 128,
        "num_key_value_heads": 128,
        "q_lora_rank": 1536,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "vocab_size": 129280,
        "tie_word_embeddings": False,
        "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]},
    },
)
