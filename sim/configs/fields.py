"""What transformers' configuration classes with experts define, of the names that readers of `config.json` look for.

Made from transformers 5.24.0: for each class its fields, their aliases (`attribute_map`), the older
names that it folds in, and what the model's code reads of it. A class that is not here is read by
all names.
"""

from __future__ import annotations

from collections.abc import Mapping

_TABLE = """
afmoe:
    global_attn_every_n_layers head_dim hidden_act hidden_size intermediate_size layer_types
    model_type moe_intermediate_size num_attention_heads num_dense_layers num_experts
    num_experts_per_tok num_hidden_layers num_key_value_heads num_shared_experts sliding_window
    tie_word_embeddings vocab_size
aria_text:
    aria_text head_dim hidden_act hidden_size intermediate_size model_type moe_num_experts
    moe_num_shared_experts moe_topk num_attention_heads num_hidden_layers num_key_value_heads
    text_config tie_word_embeddings vocab_size
axk1:
    first_k_dense_replace head_dim hidden_act hidden_size intermediate_size kv_lora_rank
    mlp_layer_types model_type moe_intermediate_size moe_layer_freq n_group n_routed_experts
    n_shared_experts num_attention_heads num_experts_per_tok num_hidden_layers num_key_value_heads
    num_local_experts q_lora_rank qk_nope_head_dim qk_rope_head_dim tie_word_embeddings topk_group
    v_head_dim vocab_size
axk2:
    first_k_dense_replace head_dim hidden_act hidden_size index_head_dim index_n_heads index_topk
    intermediate_size kv_lora_rank layer_types mlp_layer_types model_type moe_intermediate_size
    moe_layer_freq n_group n_routed_experts n_shared_experts num_attention_heads num_experts_per_tok
    num_hidden_layers num_key_value_heads num_local_experts q_lora_rank qk_nope_head_dim
    qk_rope_head_dim tie_word_embeddings topk_group v_head_dim vocab_size
bailing_hybrid:
    first_k_dense_replace head_dim hidden_act hidden_size intermediate_size kv_lora_rank
    layer_group_size layer_types linear_conv_kernel_dim linear_head_dim linear_num_heads
    mlp_layer_types model_type moe_intermediate_size n_group n_shared_experts num_attention_heads
    num_expert_group num_experts num_experts_per_tok num_experts_per_token num_hidden_layers
    num_key_value_heads num_local_experts num_shared_experts q_lora_rank qk_nope_head_dim
    qk_rope_head_dim short_conv_kernel_size tie_word_embeddings topk_group v_head_dim vocab_size
beam:
    head_dim hidden_act hidden_size intermediate_size layer_types mlp_layer_types model_type
    moe_intermediate_size n_group num_attention_heads num_experts num_experts_per_tok
    num_hidden_layers num_key_value_heads sliding_window tie_word_embeddings topk_group vocab_size
cohere2_moe:
    first_k_dense_replace head_dim hidden_act hidden_size intermediate_size layer_types
    mlp_layer_types model_type num_attention_heads num_experts num_experts_per_tok num_hidden_layers
    num_key_value_heads num_shared_experts prefix_dense_intermediate_size sliding_window
    sliding_window_pattern tie_word_embeddings vocab_size
deepseek_ocr2_text:
    head_dim hidden_act hidden_size intermediate_size layer_types mlp_layer_types model_type
    moe_intermediate_size n_group n_routed_experts n_shared_experts num_attention_heads num_experts
    num_experts_per_tok num_hidden_layers num_key_value_heads sliding_window text_config
    tie_word_embeddings topk_group topk_method vocab_size
deepseek_v2:
    first_k_dense_replace head_dim hidden_act hidden_size intermediate_size kv_lora_rank model_type
    moe_intermediate_size n_group n_routed_experts n_shared_experts num_attention_heads num_experts
    num_experts_per_tok num_hidden_layers num_key_value_heads q_lora_rank qk_nope_head_dim
    qk_rope_head_dim tie_word_embeddings topk_group topk_method v_head_dim vocab_size
deepseek_v3:
    first_k_dense_replace head_dim hidden_act hidden_size intermediate_size kv_lora_rank model_type
    moe_intermediate_size n_group n_routed_experts n_shared_experts num_attention_heads
    num_experts_per_tok num_hidden_layers num_key_value_heads num_local_experts q_lora_rank
    qk_nope_head_dim qk_rope_head_dim tie_word_embeddings topk_group v_head_dim vocab_size
deepseek_v32:
    deepseek_v32 first_k_dense_replace head_dim hidden_act hidden_size index_head_dim index_n_heads
    index_topk intermediate_size kv_lora_rank layer_types mlp_layer_types model_type
    moe_intermediate_size n_group n_routed_experts n_shared_experts num_attention_heads num_experts
    num_experts_per_tok num_hidden_layers num_key_value_heads num_local_experts q_lora_rank
    qk_nope_head_dim qk_rope_head_dim tie_word_embeddings topk_group v_head_dim vocab_size
deepseek_v4:
    deepseek_v4 head_dim hidden_act hidden_size index_head_dim index_n_heads index_topk
    intermediate_size layer_types mlp_layer_types model_type moe_intermediate_size n_routed_experts
    n_shared_experts num_attention_heads num_experts_per_tok num_hidden_layers num_key_value_heads
    num_local_experts q_lora_rank qk_rope_head_dim quantization_config sliding_window
    tie_word_embeddings vocab_size
diffusion_gemma_text:
    diffusion_gemma_text global_head_dim head_dim hidden_size intermediate_size layer_types
    model_type moe_intermediate_size num_attention_heads num_experts num_global_key_value_heads
    num_hidden_layers num_key_value_heads sliding_window text_config tie_word_embeddings
    top_k_experts vocab_size
doge:
    head_dim hidden_act hidden_size intermediate_size model_type num_attention_heads num_experts
    num_experts_per_tok num_hidden_layers num_key_value_heads sliding_window tie_word_embeddings
    vocab_size
dots1:
    first_k_dense_replace head_dim hidden_act hidden_size intermediate_size layer_types model_type
    moe_intermediate_size n_group n_routed_experts n_shared_experts num_attention_heads
    num_experts_per_tok num_hidden_layers num_key_value_heads num_local_experts sliding_window
    tie_word_embeddings topk_group vocab_size
dots3_note_text:
    dots3_note_text first_k_dense_replace head_dim hidden_act hidden_size index_head_dim
    index_n_heads index_topk intermediate_size kv_lora_rank layer_types mlp_layer_types model_type
    moe_intermediate_size moe_layer_freq moe_shared_expert_intermediate_size n_group
    n_routed_experts n_shared_experts num_attention_heads num_experts_per_tok num_hidden_layers
    num_key_value_heads num_local_experts q_lora_rank qk_nope_head_dim qk_rope_head_dim
    shared_experts_intermediate_size sliding_window sliding_window_size text_config
    tie_word_embeddings topk_group use_sliding_window v_head_dim vocab_size
dots3_note_vision_encoder:
    head_dim hidden_act hidden_size index_head_dim index_n_heads index_topk intermediate_size
    kv_lora_rank layer_types mlp_layer_types model_type moe_intermediate_size n_group
    n_shared_experts num_attention_heads num_experts_per_tok num_heads num_hidden_layers
    num_key_value_heads num_local_experts q_lora_rank qk_nope_head_dim qk_rope_head_dim
    shared_experts_intermediate_size sliding_window text_config topk_group v_head_dim vocab_size
ernie4_5_moe:
    head_dim hidden_act hidden_size intermediate_size model_type moe_intermediate_size moe_k
    moe_layer_end_index moe_layer_interval moe_layer_start_index moe_num_experts
    moe_num_shared_experts num_attention_heads num_experts num_experts_per_tok num_hidden_layers
    num_key_value_heads tie_word_embeddings vocab_size
ernie4_5_vl_moe_text:
    ernie4_5_vl_moe_text head_dim hidden_act hidden_size intermediate_size mlp_layer_types
    model_type moe_intermediate_size moe_k moe_num_experts moe_num_shared_experts
    num_attention_heads num_experts num_experts_per_tok num_heads num_hidden_layers
    num_key_value_heads text_config tie_word_embeddings vocab_size
exaone_moe:
    exaone_moe first_k_dense_replace head_dim hidden_act hidden_size intermediate_size layer_types
    mlp_layer_types model_type moe_intermediate_size n_group num_attention_heads num_experts
    num_experts_per_tok num_hidden_layers num_key_value_heads num_shared_experts sliding_window
    sliding_window_pattern tie_word_embeddings topk_group vocab_size
flex_olmo:
    flex_olmo head_dim hidden_act hidden_size intermediate_size model_type num_attention_heads
    num_experts num_experts_per_tok num_hidden_layers num_key_value_heads num_local_experts
    tie_word_embeddings vocab_size
flint:
    decoder_sparse_step head_dim hidden_act hidden_size intermediate_size layer_types
    mlp_only_layers model_type moe_intermediate_size num_attention_heads num_experts
    num_experts_per_tok num_hidden_layers num_key_value_heads shared_expert_intermediate_size
    sliding_window tie_word_embeddings vocab_size
gemma4_text:
    attention_chunk_size gemma4_text global_head_dim head_dim hidden_act hidden_size
    intermediate_size layer_types model_type moe_intermediate_size num_attention_heads num_experts
    num_global_key_value_heads num_hidden_layers num_key_value_heads sliding_window text_config
    tie_word_embeddings top_k_experts vocab_size
glm4_moe:
    first_k_dense_replace head_dim hidden_act hidden_size intermediate_size model_type
    moe_intermediate_size n_group n_routed_experts n_shared_experts num_attention_heads
    num_experts_per_tok num_hidden_layers num_key_value_heads num_local_experts tie_word_embeddings
    topk_group vocab_size
glm4_moe_lite:
    glm4_moe_lite head_dim hidden_act hidden_size intermediate_size kv_lora_rank mlp_layer_types
    model_type moe_intermediate_size n_group n_routed_experts n_shared_experts num_attention_heads
    num_experts_per_tok num_hidden_layers num_key_value_heads num_local_experts q_lora_rank
    qk_nope_head_dim qk_rope_head_dim tie_word_embeddings topk_group v_head_dim vocab_size
glm4v_moe_text:
    first_k_dense_replace head_dim hidden_act hidden_size intermediate_size model_type
    moe_intermediate_size n_group n_routed_experts n_shared_experts num_attention_heads
    num_experts_per_tok num_heads num_hidden_layers num_key_value_heads num_local_experts
    text_config tie_word_embeddings topk_group vocab_size
glm5_next_text:
    glm5_next_text head_dim hidden_act hidden_size index_head_dim index_n_heads index_topk
    intermediate_size kv_lora_rank layer_types linear_attn_config linear_conv_kernel_dim
    linear_head_dim linear_num_heads mlp_layer_types model_type moe_intermediate_size n_group
    n_routed_experts n_shared_experts num_attention_heads num_experts_per_tok num_heads
    num_hidden_layers num_key_value_heads num_local_experts q_lora_rank qk_nope_head_dim
    qk_rope_head_dim short_conv_kernel_size text_config tie_word_embeddings topk_group v_head_dim
    vocab_size
glm_moe_dsa:
    first_k_dense_replace glm_moe_dsa head_dim hidden_act hidden_size index_head_dim index_n_heads
    index_topk intermediate_size kv_lora_rank layer_types mlp_layer_types model_type
    moe_intermediate_size n_group n_routed_experts n_shared_experts num_attention_heads num_experts
    num_experts_per_tok num_hidden_layers num_key_value_heads num_local_experts q_lora_rank
    qk_nope_head_dim qk_rope_head_dim tie_word_embeddings topk_group v_head_dim vocab_size
gpt_oss:
    gpt_oss head_dim hidden_act hidden_size intermediate_size layer_types model_type
    num_attention_heads num_experts num_experts_per_tok num_hidden_layers num_key_value_heads
    num_local_experts sliding_window tie_word_embeddings vocab_size
granitemoe:
    head_dim hidden_act hidden_size intermediate_size model_type num_attention_heads
    num_experts_per_tok num_hidden_layers num_key_value_heads num_local_experts tie_word_embeddings
    vocab_size
granitemoe_swa:
    granitemoe_swa head_dim hidden_act hidden_size intermediate_size layer_types model_type
    num_attention_heads num_experts_per_tok num_hidden_layers num_key_value_heads num_local_experts
    shared_intermediate_size sliding_window tie_word_embeddings vocab_size
granitemoehybrid:
    head_dim hidden_act hidden_size intermediate_size layer_types layers_block_type mamba_d_conv
    mamba_d_head mamba_d_state mamba_expand mamba_n_groups mamba_n_heads model_type
    num_attention_heads num_experts_per_tok num_hidden_layers num_key_value_heads num_local_experts
    shared_intermediate_size tie_word_embeddings vocab_size
granitemoeshared:
    head_dim hidden_act hidden_size intermediate_size model_type num_attention_heads
    num_experts_per_tok num_hidden_layers num_key_value_heads num_local_experts
    shared_intermediate_size tie_word_embeddings vocab_size
hunyuan_v1_moe:
    head_dim hidden_act hidden_size hunyuan_v1_moe intermediate_size model_type moe_topk
    num_attention_heads num_experts num_experts_per_tok num_hidden_layers num_key_value_heads
    num_local_experts tie_word_embeddings vocab_size
hy_v3:
    head_dim hidden_act hidden_size hy_v3 intermediate_size mlp_layer_types model_type
    moe_intermediate_size num_attention_heads num_experts num_experts_per_tok num_hidden_layers
    num_key_value_heads num_local_experts num_shared_experts tie_word_embeddings vocab_size
hy_v4:
    head_dim hidden_act hidden_size hy_v4 index_head_dim index_n_heads index_topk intermediate_size
    kv_lora_rank layer_types mlp_layer_types model_type moe_intermediate_size n_group
    n_routed_experts n_shared_experts num_attention_heads num_experts_per_tok num_hidden_layers
    num_key_value_heads num_local_experts q_lora_rank qk_nope_head_dim qk_rope_head_dim
    tie_word_embeddings topk_group v_head_dim vocab_size
hy_v4_vl_text:
    head_dim hidden_act hidden_size index_head_dim index_n_heads index_topk intermediate_size
    kv_lora_rank layer_types mlp_layer_types model_type moe_intermediate_size n_group
    n_routed_experts n_shared_experts num_attention_heads num_experts_per_tok num_hidden_layers
    num_key_value_heads num_local_experts q_lora_rank qk_nope_head_dim qk_rope_head_dim text_config
    tie_word_embeddings topk_group v_head_dim vocab_size
inkling2_loop_text:
    head_dim hidden_act hidden_size intermediate_size layer_types model_type moe_intermediate_size
    n_routed_experts num_attention_heads num_experts_per_tok num_hidden_layers num_key_value_heads
    num_local_experts sliding_window sliding_window_size swa_head_dim swa_num_attention_heads
    swa_num_key_value_heads text_config vocab_size
inkling2_text:
    head_dim hidden_act hidden_size intermediate_size layer_types model_type moe_intermediate_size
    n_routed_experts num_attention_heads num_experts_per_tok num_hidden_layers num_key_value_heads
    num_local_experts sliding_window sliding_window_size swa_head_dim swa_num_attention_heads
    swa_num_key_value_heads text_config vocab_size
inkling_text:
    dense_intermediate_size head_dim hidden_act hidden_size intermediate_size layer_types
    local_layer_ids mlp_layer_types model_type moe_intermediate_size n_routed_experts
    n_shared_experts num_attention_heads num_experts_per_tok num_hidden_layers num_key_value_heads
    num_local_experts sliding_window sliding_window_size swa_head_dim swa_num_attention_heads
    swa_num_key_value_heads text_config vocab_size
jamba:
    attn_layer_offset attn_layer_period expert_layer_offset expert_layer_period head_dim hidden_act
    hidden_size intermediate_size layer_types layers_block_type mamba_d_conv mamba_d_state
    mamba_dt_rank mamba_expand model_type num_attention_heads num_experts num_experts_per_tok
    num_hidden_layers num_key_value_heads num_local_experts tie_word_embeddings vocab_size
jetmoe:
    head_dim hidden_size intermediate_size kv_channels model_type num_attention_heads
    num_experts_per_tok num_hidden_layers num_key_value_heads num_local_experts tie_word_embeddings
    vocab_size
kimi_linear:
    first_k_dense_replace full_attn_layers head_dim hidden_act hidden_size intermediate_size
    kimi_linear kv_lora_rank layer_types linear_attn_config linear_conv_kernel_dim linear_head_dim
    linear_num_heads mlp_layer_types model_type moe_intermediate_size n_group n_shared_experts
    num_attention_heads num_expert_group num_experts num_experts_per_tok num_experts_per_token
    num_heads num_hidden_layers num_key_value_heads num_local_experts num_shared_experts q_lora_rank
    qk_nope_head_dim qk_rope_head_dim short_conv_kernel_size tie_word_embeddings topk_group
    v_head_dim vocab_size
kolibri1:
    head_dim hidden_act hidden_size intermediate_size layer_types model_type moe_intermediate_size
    num_attention_heads num_experts num_experts_per_tok num_hidden_layers num_key_value_heads
    num_local_experts shared_expert_intermediate_size sliding_window tie_word_embeddings vocab_size
laguna:
    head_dim hidden_act hidden_size intermediate_size layer_types mlp_layer_types model_type
    moe_intermediate_size num_attention_heads num_experts num_experts_per_tok num_hidden_layers
    num_key_value_heads shared_expert_intermediate_size sliding_window tie_word_embeddings
    vocab_size
lara_mini:
    head_dim hidden_act hidden_size intermediate_size lara_mini layer_types linear_conv_kernel_dim
    linear_key_head_dim linear_num_key_heads linear_num_value_heads linear_value_head_dim model_type
    moe_intermediate_size num_attention_heads num_experts num_experts_per_tok num_hidden_layers
    num_key_value_heads shared_expert_intermediate_size sliding_window tie_word_embeddings
    vocab_size
lfm2_moe:
    conv_L_cache head_dim hidden_size intermediate_size layer_types lfm2_moe model_type
    moe_intermediate_size num_attention_heads num_dense_layers num_experts num_experts_per_tok
    num_hidden_layers num_key_value_heads tie_word_embeddings vocab_size
llama4_text:
    attention_chunk_size chunked_attention head_dim hidden_act hidden_size interleave_moe_layer_step
    intermediate_size intermediate_size_mlp layer_types llama4_text model_type moe_layers
    num_attention_heads num_experts_per_tok num_hidden_layers num_key_value_heads num_local_experts
    text_config tie_word_embeddings vocab_size
longcat_flash:
    expert_ffn_hidden_size ffn_hidden_size head_dim hidden_act hidden_size intermediate_size
    kv_lora_rank longcat_flash model_type moe_intermediate_size moe_topk n_routed_experts
    num_attention_heads num_experts_per_tok num_key_value_heads num_layers num_local_experts
    q_lora_rank qk_nope_head_dim qk_rope_head_dim tie_word_embeddings v_head_dim vocab_size
mellum:
    head_dim hidden_act hidden_size intermediate_size layer_types mlp_layer_types model_type
    moe_intermediate_size num_attention_heads num_experts num_experts_per_tok num_hidden_layers
    num_key_value_heads num_local_experts sliding_window tie_word_embeddings vocab_size
mimo_v2_flash:
    head_dim hidden_act hidden_size intermediate_size layer_types mimo_v2_flash mlp_layer_types
    model_type moe_intermediate_size n_group n_routed_experts num_attention_heads
    num_experts_per_tok num_hidden_layers num_key_value_heads num_local_experts sliding_window
    sliding_window_size tie_word_embeddings topk_group v_head_dim vocab_size
minimax:
    head_dim hidden_act hidden_size intermediate_size layer_types model_type num_attention_heads
    num_experts num_experts_per_tok num_hidden_layers num_key_value_heads num_local_experts
    sliding_window tie_word_embeddings vocab_size
minimax_m2:
    head_dim hidden_act hidden_size intermediate_size minimax_m2 model_type num_attention_heads
    num_experts num_experts_per_tok num_hidden_layers num_key_value_heads num_local_experts
    tie_word_embeddings vocab_size
minimax_m3_vl_text:
    dense_intermediate_size head_dim hidden_act hidden_size index_block_size index_head_dim
    index_n_heads index_topk_blocks intermediate_size layer_types minimax_m3_sparse mlp_layer_types
    model_type moe_layer_freq num_attention_heads num_experts num_experts_per_tok num_hidden_layers
    num_key_value_heads num_local_experts shared_intermediate_size text_config tie_word_embeddings
    vocab_size
mistral4:
    first_k_dense_replace head_dim hidden_act hidden_size intermediate_size kv_lora_rank model_type
    moe_intermediate_size n_group n_routed_experts n_shared_experts num_attention_heads
    num_experts_per_tok num_hidden_layers num_key_value_heads num_local_experts q_lora_rank
    qk_nope_head_dim qk_rope_head_dim tie_word_embeddings topk_group v_head_dim vocab_size
mistral_large4_text:
    first_k_dense_replace head_dim hidden_act hidden_size index_head_dim index_n_heads index_topk
    intermediate_size kv_lora_rank layer_types mistral_large4_text mlp_layer_types model_type
    moe_intermediate_size n_group n_routed_experts n_shared_experts num_attention_heads num_experts
    num_experts_per_tok num_hidden_layers num_key_value_heads num_local_experts qk_nope_head_dim
    qk_rope_head_dim text_config tie_word_embeddings topk_group v_head_dim vocab_size
mixtral:
    head_dim hidden_act hidden_size intermediate_size model_type num_attention_heads num_experts
    num_experts_per_tok num_hidden_layers num_key_value_heads num_local_experts sliding_window
    tie_word_embeddings vocab_size
muse_spark_text:
    head_dim hidden_act hidden_size intermediate_size layer_types mlp_layer_types model_type
    moe_hidden_size moe_intermediate_size num_attention_heads num_experts_per_tok num_hidden_layers
    num_key_value_heads num_local_experts sliding_window text_config tie_word_embeddings vocab_size
nemotron_h:
    conv_kernel head_dim hidden_size hybrid_override_pattern intermediate_size layer_types
    layers_block_type mamba_d_conv mamba_expand mamba_head_dim mamba_n_groups mamba_num_heads
    mlp_hidden_act model_type moe_intermediate_size moe_latent_size
    moe_shared_expert_intermediate_size n_group n_groups n_routed_experts n_shared_experts
    num_attention_heads num_experts_per_tok num_hidden_layers num_key_value_heads num_local_experts
    sliding_window ssm_state_size tie_word_embeddings topk_group vocab_size
nllb-moe:
    d_model decoder_sparse_step hidden_size model_type num_attention_heads num_experts
    num_hidden_layers tie_word_embeddings vocab_size
olmoe:
    head_dim hidden_act hidden_size intermediate_size model_type num_attention_heads num_experts
    num_experts_per_tok num_hidden_layers num_key_value_heads num_local_experts sliding_window
    tie_word_embeddings vocab_size
openai_privacy_filter:
    head_dim hidden_size intermediate_size model_type num_attention_heads num_experts
    num_experts_per_tok num_hidden_layers num_key_value_heads num_local_experts
    openai_privacy_filter sliding_window tie_word_embeddings vocab_size
phimoe:
    head_dim hidden_act hidden_size intermediate_size model_type num_attention_heads
    num_experts_per_tok num_hidden_layers num_key_value_heads num_local_experts sliding_window
    tie_word_embeddings vocab_size
qwen2_moe:
    decoder_sparse_step head_dim hidden_act hidden_size intermediate_size layer_types
    mlp_only_layers model_type moe_intermediate_size num_attention_heads num_experts
    num_experts_per_tok num_hidden_layers num_key_value_heads qwen2_moe
    shared_expert_intermediate_size sliding_window tie_word_embeddings use_sliding_window vocab_size
qwen3_5_moe_text:
    full_attention_interval head_dim hidden_act hidden_size intermediate_size layer_types
    linear_conv_kernel_dim linear_key_head_dim linear_num_key_heads linear_num_value_heads
    linear_value_head_dim model_type moe_intermediate_size num_attention_heads num_experts
    num_experts_per_tok num_heads num_hidden_layers num_key_value_heads qwen3_5_moe_text
    shared_expert_intermediate_size text_config tie_word_embeddings vocab_size
qwen3_moe:
    decoder_sparse_step head_dim hidden_act hidden_size intermediate_size mlp_only_layers model_type
    moe_intermediate_size num_attention_heads num_experts num_experts_per_tok num_hidden_layers
    num_key_value_heads num_local_experts qwen3_moe sliding_window tie_word_embeddings
    use_sliding_window vocab_size
qwen3_next:
    decoder_sparse_step full_attention_interval head_dim hidden_act hidden_size intermediate_size
    layer_types linear_conv_kernel_dim linear_key_head_dim linear_num_key_heads
    linear_num_value_heads linear_value_head_dim mlp_only_layers model_type moe_intermediate_size
    num_attention_heads num_experts num_experts_per_tok num_hidden_layers num_key_value_heads
    qwen3_next shared_expert_intermediate_size tie_word_embeddings vocab_size
qwen3_omni_moe_talker_text:
    d_model decoder_sparse_step head_dim hidden_act hidden_size intermediate_size layer_types
    mlp_only_layers model_type moe_intermediate_size num_attention_heads num_experts
    num_experts_per_tok num_heads num_hidden_layers num_key_value_heads num_local_experts
    shared_expert_intermediate_size sliding_window text_config thinker_config tie_word_embeddings
    vocab_size
qwen3_omni_moe_text:
    d_model decoder_sparse_step head_dim hidden_act hidden_size intermediate_size layer_types
    mlp_only_layers model_type moe_intermediate_size num_attention_heads num_experts
    num_experts_per_tok num_heads num_hidden_layers num_key_value_heads qwen3_omni_moe_text
    shared_expert_intermediate_size sliding_window text_config thinker_config vocab_size
qwen3_vl_moe_text:
    decoder_sparse_step head_dim hidden_act hidden_size intermediate_size layer_types
    mlp_only_layers model_type moe_intermediate_size num_attention_heads num_experts
    num_experts_per_tok num_heads num_hidden_layers num_key_value_heads num_local_experts
    qwen3_vl_moe_text sliding_window text_config tie_word_embeddings vocab_size
qwen4_exp_text:
    full_attention_interval head_dim hidden_act hidden_size intermediate_size layer_types
    linear_conv_kernel_dim linear_key_head_dim linear_num_key_heads linear_num_value_heads
    linear_value_head_dim model_type moe_intermediate_size num_attention_heads num_experts
    num_experts_per_tok num_heads num_hidden_layers num_key_value_heads
    shared_expert_intermediate_size text_config tie_word_embeddings vocab_size
sarvam_mla:
    first_k_dense_replace head_dim hidden_act hidden_size intermediate_size kv_lora_rank model_type
    moe_intermediate_size n_group n_routed_experts n_shared_experts num_attention_heads num_experts
    num_experts_per_tok num_hidden_layers num_key_value_heads num_local_experts num_shared_experts
    q_lora_rank qk_nope_head_dim qk_rope_head_dim tie_word_embeddings topk_group v_head_dim
    vocab_size
sarvam_moe:
    first_k_dense_replace head_dim hidden_act hidden_size intermediate_size model_type
    moe_intermediate_size n_group n_routed_experts n_shared_experts num_attention_heads num_experts
    num_experts_per_tok num_hidden_layers num_key_value_heads num_local_experts num_shared_experts
    tie_word_embeddings topk_group vocab_size
solar_open:
    head_dim hidden_act hidden_size intermediate_size model_type moe_intermediate_size n_group
    n_routed_experts n_shared_experts num_attention_heads num_experts_per_tok num_hidden_layers
    num_key_value_heads num_local_experts solar_open tie_word_embeddings topk_group vocab_size
step3p5:
    attention_other_setting head_dim hidden_act hidden_size index_block_size index_head_dim
    index_n_heads index_topk_blocks intermediate_size layer_types minimax_m3_sparse mlp_layer_types
    model_type moe_intermediate_size moe_layer_freq moe_layers_enum moe_num_experts moe_top_k
    n_routed_experts num_attention_groups num_attention_heads num_experts_per_tok num_hidden_layers
    num_key_value_heads num_local_experts share_expert_dim share_expert_dims sliding_window
    text_config tie_word_embeddings vocab_size
switch_transformers:
    d_model decoder_sparse_step hidden_size model_type num_attention_heads num_experts num_heads
    num_hidden_layers num_layers tie_word_embeddings vocab_size
unlimited_ocr_text:
    first_k_dense_replace head_dim hidden_act hidden_size intermediate_size layer_types
    mlp_layer_types model_type moe_intermediate_size n_group n_routed_experts n_shared_experts
    num_attention_heads num_experts num_experts_per_tok num_hidden_layers num_key_value_heads
    sliding_window text_config tie_word_embeddings topk_group topk_method vocab_size
vitpose_backbone:
    hidden_act hidden_size model_type num_attention_heads num_experts num_hidden_layers
zaya:
    head_dim hidden_act hidden_size layer_types model_type moe_intermediate_size num_attention_heads
    num_experts num_experts_per_tok num_hidden_layers num_key_value_heads sliding_window
    tie_word_embeddings vocab_size
"""


def _parsed(table: str) -> dict[str, frozenset[str]]:
    found: dict[str, list[str]] = {}
    for line in table.strip().splitlines():
        if line.endswith(":"):
            names = found[line[:-1]] = []
        else:
            names.extend(line.split())
    return {model_type: frozenset(names) for model_type, names in found.items()}


FIELDS_OF: Mapping[str, frozenset[str]] = _parsed(_TABLE)
"""Names by `model_type`."""
