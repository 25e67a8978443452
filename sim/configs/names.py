"""Names under which configs say the sizes of attention."""

from __future__ import annotations

HEADS = ("num_attention_heads", "n_head", "n_heads")
KV_HEADS = ("num_key_value_heads", "num_kv_heads", "num_attention_groups", "kv_n_heads")
HEAD_DIM = ("head_dim", "kv_channels", "attention_head_dim")
WINDOW = ("sliding_window", "sliding_window_size", "attention_chunk_size")
HIDDEN = ("hidden_size", "d_model", "n_embd")
# Of latent attention, DeepSeek's names and openPangu-Ultra-MoE's.
KV_RANK, Q_RANK = ("kv_lora_rank", "attention_kv_lora_dim"), ("q_lora_rank", "attention_q_lora_dim")
NOPE_DIM, ROPE_DIM = ("qk_nope_head_dim", "attention_qk_dim"), ("qk_rope_head_dim", "attention_qk_rope_dim")
VALUE_DIM = ("v_head_dim", "value_head_dim", "attention_v_dim")
