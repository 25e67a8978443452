"""OpenAI's gpt-oss."""

from moecast.sim.models.preset import ModelPreset

_LAYERS = 36

GPT_OSS_120B = ModelPreset(
    source="config.json of openai/gpt-oss-120b; 116.83 B parameters, 5.13 B active with the LM "
    "head and without the embedding (arXiv 2508.10925, table 1)",
    total_parameters=116.83e9,
    active_parameters=5.13e9,
    active_with_embedding=False,
    config={
        "model_type": "gpt_oss",
        "hidden_size": 2880,
        "intermediate_size": 2880,
        "num_hidden_layers": _LAYERS,
        "num_local_experts": 128,
        "num_experts_per_tok": 4,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "sliding_window": 128,
        "layer_types": ["sliding_attention", "full_attention"] * (_LAYERS // 2),
        "vocab_size": 201088,
        "tie_word_embeddings": False,
        "quantization_config": {
            "quant_method": "mxfp4",
            "modules_to_not_convert": [
                "model.layers.*.self_attn",
                "model.layers.*.mlp.router",
                "model.embed_tokens",
                "lm_head",
            ],
        },
    },
)
