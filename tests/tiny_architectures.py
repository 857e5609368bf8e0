"""Tiny random models of every causal architecture of transformers, from configs of a few fields each."""

import pytest
import torch

V, D = 67, 16
# Whichever of these a config has; what it has no default for stays small by them.
SIZES = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "embedding_size", "lru_width", "word_embed_proj_dim"), D),
    **dict.fromkeys(("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size", "n_inner"), 24),
    **dict.fromkeys(("ffn_dim", "intermediate_size_mlp", "attention_ffn_dim"), 24),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "attention_heads"), 2),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads"), 2),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 8),
    **dict.fromkeys(
        ("num_key_value_heads", "num_global_key_value_heads", "n_shared_experts", "n_group", "topk_group"), 1
    ),
    **dict.fromkeys(("head_dim", "global_head_dim", "v_head_dim", "q_lora_rank", "kv_lora_rank"), 8),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "rotary_dim", "state_size", "time_step_rank"), 4),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), 64),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    "mamba_n_heads": 4,
    "mamba_d_head": 8,
    "mamba_d_state": 4,
    "mamba_d_ssm": 32,
    "expand": 2,
    **dict.fromkeys(("mamba_num_heads", "chunk_size", "mamba_chunk_size", "ssm_state_size"), 4),
    **dict.fromkeys(
        ("dff", "dense_intermediate_size", "shared_intermediate_size", "moe_shared_expert_intermediate_size"), 24
    ),
    **dict.fromkeys(("mamba_head_dim", "o_lora_rank", "index_head_dim", "swa_head_dim"), 8),
    **dict.fromkeys(("index_n_heads", "swa_num_attention_heads"), 2),
    "swa_num_key_value_heads": 1,
    "num_experts_per_tok": 2,
    "router_aux_loss_coef": 0.5,  # a term that a test can see
    "vocab_size": V,
    "initializer_range": 0.4,  # logits of a few nats, so that caps and scales matter
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
HYBRID = ["linear_attention", "full_attention"]
LATENT = {"num_key_value_heads": 2, "head_dim": 4}  # multi-head latent attention
LINEAR = {"layer_types": HYBRID, "num_key_value_heads": 2, "linear_head_dim": 8, "linear_num_heads": 2}
ROPE = {"rope_type": "default", "rope_theta": 1e4}
CAPPED = {"final_logit_softcapping": 3.0}
DIVIDED = {"logits_scaling": 4.0}
MAMBA = {"mamba_dt_rank": 4, "use_mamba_kernels": False}

# config.model_type -> what its config needs besides: scales and caps away from 1 and none, layers of every kind.
TINY = {
    "afmoe": {},
    "apertus": {},
    "arcee": {},
    "aria_text": {},
    "axk1": LATENT,
    "axk2": LATENT,
    "bailing_hybrid": LINEAR,
    "bamba": {"attn_layer_indices": [1]},
    "beam": CAPPED,
    "bert-generation": {"is_decoder": True},
    "biogpt": {},
    "bitnet": {},
    "bloom": {},
    "codegen": {"n_head": 4, "n_embd": 32},
    "cohere": {"logit_scale": 0.25},
    "cohere2": {"logit_scale": 0.125},
    "cohere2_moe": {"logit_scale": 0.125},
    "cohere_compass_text": {
        "logit_scale": 0.125,
        "rope_parameters": {"full_attention": ROPE, "sliding_attention": ROPE},
    },
    "ctrl": {},
    "cwm": {},
    "dbrx": {
        "attn_config": {"kv_n_heads": 1, "clip_qkv": 8.0, "rope_theta": 1e4},
        "ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2, "moe_loss_weight": 0.5},
    },
    "deepseek_v2": {},
    "deepseek_v3": LATENT,
    "deepseek_v32": LATENT,
    "deepseek_v4": {"o_groups": 2, "mlp_layer_types": ["hash_moe", "moe"]},
    "diffllama": {"num_key_value_heads": 2},
    "doge": {"is_moe": True, "num_experts": 4},
    "dots1": {},
    "dots3_note_text": {
        "num_key_value_heads": 2,
        "layer_types": ["indexed_attention", "sliding_attention"],
        "per_layer_config": None,
        "index_topk": 4,
        "index_head_dim": 8,
        "index_n_heads": 2,
        "shared_experts_intermediate_size": 24,
    },
    "ernie4_5": {},
    "ernie4_5_moe": {},
    "exaone4": {},
    "exaone_moe": {},
    "falcon": {},
    "falcon_h1": {"lm_head_multiplier": 0.25},
    "falcon_mamba": {},
    "flex_olmo": {},
    "flint": {"mlp_only_layers": [0]},
    "gemma": {},
    "gemma2": CAPPED | {"tie_word_embeddings": True},
    "gemma3_text": {"final_logit_softcapping": 2.0},
    "gemma3n_text": {
        **CAPPED,
        "vocab_size_per_layer_input": V,
        "hidden_size_per_layer_input": 8,
        "num_kv_shared_layers": 0,
        "laurel_rank": 4,
        "layer_types": ["sliding_attention", "full_attention"],
        "activation_sparsity_pattern": [0.5, 0.0],
        "intermediate_size": [24, 24],
    },
    "gemma4_text": CAPPED | {"vocab_size_per_layer_input": V, "hidden_size_per_layer_input": 8},
    "gemma4_unified_text": CAPPED,
    "glm": {},
    "glm4": {},
    "glm4_moe": {},
    "glm4_moe_lite": {},
    "glm_moe_dsa": LATENT,
    "gpt2": {},
    "gpt_bigcode": {},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 8},
    "gpt_neox": {},
    "gpt_neox_japanese": {},
    "gpt_oss": {},
    "gptj": {},
    "granite": DIVIDED,
    "granite_swa": DIVIDED,
    "granitemoe": DIVIDED,
    "granitemoe_swa": DIVIDED,
    "granitemoehybrid": DIVIDED | {"shared_intermediate_size": 24, "layer_types": HYBRID},
    "granitemoeshared": DIVIDED | {"shared_intermediate_size": 24},
    "helium": {},
    "hrm_text": {},
    "hunyuan_v1_dense": {},
    "hunyuan_v1_moe": {},
    "hy_v3": {},
    "hy_v4": {},
    "hyperclovax": {"logits_scaling": 0.25},
    "inkling_text": {"logits_mup_width_multiplier": 4.0},
    "internlm3": {},
    "iquestcoder": {},
    "jais2": {},
    "jamba": MAMBA | {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_offset": 0},
    "jetmoe": {"aux_loss_coef": 0.5},
    "kimi_linear": LINEAR,
    "kolibri1": {},
    "laguna": {},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "lfm3": {"layer_types": ["conv", "full_attention"]},
    "llama": {},
    "llama4_text": {},
    "longcat_flash": LATENT
    | {"num_layers": 1, "ffn_hidden_size": 24, "expert_ffn_hidden_size": 24, "moe_topk": 2, "zero_expert_num": 2},
    "mamba": {},
    "mamba2": {"num_heads": 4, "n_groups": 1},
    "mellum": {},
    "mimo_v2_flash": {},
    "minicpm3": {"num_key_value_heads": 2, "head_dim": 4, "dim_model_base": 4},
    "minimax": {},
    "minimax_m2": {},
    "minimax_m3_vl_text": {},
    "ministral": {},
    "ministral3": {},
    "mistral": {},
    "mixtral": {},
    "modernbert-decoder": {"local_attention": 8},
    "moshi": {},
    "mpt": {},
    "nanochat": CAPPED,
    "nemotron": {},
    "nemotron_h": {"n_groups": 1},
    "olmo": {},
    "olmo2": {},
    "olmo3": {},
    "olmo_hybrid": {},
    "olmoe": {},
    "openai-gpt": {},
    "opt": {},
    "persimmon": {},
    "phi": {},
    "phi3": {},
    "phimoe": {},
    "qwen2": {},
    "qwen2_moe": {},
    "qwen3": {},
    "qwen3_5_moe_text": {"layer_types": HYBRID},
    "qwen3_5_text": {"layer_types": HYBRID},
    "qwen3_moe": {},
    "qwen3_next": {"layer_types": HYBRID},
    "qwen4_exp_text": {
        "layer_types": ["linear_attention", "indexed_attention"],
        "hidden_act": "silu",
        "hc_lowrank": 8,
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 4,
        "indexer_compress_ratio": 2,
    },
    "recurrent_gemma": {"logits_soft_cap": 3.0, "num_hidden_layers": 3, "attention_window_size": 8},
    "rwkv": {"attention_hidden_size": D},
    "seed_oss": {},
    "smollm3": {},
    "solar_open": {},
    "stablelm": {},
    "starcoder2": {},
    "vaultgemma": CAPPED,
    "xglm": {},
    "xlstm": {
        "num_blocks": 2,
        "embedding_dim": D,
        "num_heads": 2,
        "chunk_size": 3,
        "output_logit_soft_cap": 3.0,
        "mode": "train",
        "use_cache": False,
    },
    "youtu": LATENT,
    "zamba": MAMBA
    | {
        "num_hidden_layers": 3,
        "attention_hidden_size": 2 * D,
        "attention_head_dim": D,
        "num_key_value_heads": 2,
        "layers_block_type": ["linear_attention", "hybrid", "hybrid"],
    },
    "zamba2": {
        "attention_hidden_size": 2 * D,
        "attention_head_dim": D,
        "num_key_value_heads": 2,
        "adapter_rank": 4,
        "n_mamba_heads": 4,
        "mamba_headdim": 8,
        "mamba_d_state": 4,
        "use_mamba_kernels": False,
        "layers_block_type": ["linear_attention", "hybrid"],
    },
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 8, "lm_head_bias": True},
}
ONLY_IN_TRAINING = {"rwkv", "xlstm"}  # in evaluation they change tensors in place that gradients need


def tiny_config(model_type, **changes):
    transformers = pytest.importorskip("transformers")
    default = transformers.AutoConfig.for_model(model_type)
    aliases = type(default).attribute_map
    names = {*default.to_dict(), *aliases}
    sizes = {name: value for name, value in SIZES.items() if name in names}
    sizes = {name: value for name, value in sizes.items() if aliases.get(name) not in sizes}
    return type(default)(**{**sizes, **TINY.get(model_type, {}), **changes})


def make_tiny(model_type, *, seed=0, **changes):
    """A random model in evaluation mode; skipped where this version of transformers has no such architecture."""
    transformers = pytest.importorskip("transformers")
    if model_type not in transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        pytest.skip(f"transformers {transformers.__version__} has no {model_type}")
    torch.manual_seed(seed)
    return randomised(transformers.AutoModelForCausalLM.from_config(tiny_config(model_type, **changes)))


def randomised(model):
    assert sum(p.numel() for p in model.parameters()) < 600_000, "a size of the config is not tiny"
    with torch.no_grad():
        for parameter in model.parameters():  # biases and gains away from 0 and 1
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.train(model.config.model_type in ONLY_IN_TRAINING)
