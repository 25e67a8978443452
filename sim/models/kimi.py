"""Moonshot AI's models: DeepSeek-V3's layers with half the heads and half as many experts again."""

from moecast.sim.models.preset import ModelPreset

KIMI_K2 = ModelPreset(
    source="config.json of moonshotai/Kimi-K2-Instruct; 1,026 B parameters in its checkpoint, 32.9 "
    "B activated with LM head and embedding, as its sizes give it (its card: 1 T, 32 B activated)",
    total_parameters=1026e9,
    active_parameters=32.9e9,
    config={
        "model_type": "kimi_k2",
        "hidden_size": 7168,
        "intermediate_size": 18432,
        "moe_intermediate_size": 2048,
        "num_hidden_layers": 61,
        "first_k_dense_replace": 1,
        "moe_layer_freq": 1,
        "n_routed_experts": 384,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "n_group": 1,
        "topk_group": 1,
        "topk_method": "noaux_tc",
        "num_attention_heads": 64,
        "num_key_value_heads": 64,
        "q_lora_rank": 1536,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "vocab_size": 163840,
        "tie_word_embeddings": False,
        "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]},
    },
)
