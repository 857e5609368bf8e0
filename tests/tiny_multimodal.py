"""Tiny random multimodal models with a batch of text and one of text with images."""

import pytest
import torch
from tiny_architectures import randomised

V, D, LENGTH, IMAGE = 67, 16, 16, 60  # IMAGE is the token that stands for a patch
TEXT = {
    "vocab_size": V,
    "hidden_size": D,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VISION = {
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
QWEN = {"depth": 1, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 1}
HYBRID = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
DEEPSTACK = QWEN | {
    "hidden_size": 8,
    "intermediate_size": 16,
    "out_hidden_size": D,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0],
}
ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "router_aux_loss_coef": 0.5,
}


def pixels(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2))


def square(count=1, size=8):
    """What most take: a square image a row, four patches each."""
    return {"pixel_values": pixels(2 * count, 3, size, size)}


def grid():
    """What Qwen's take: patches of all images in one list, and the grid of each; four patches make one token."""
    kinds = torch.zeros(2, LENGTH, dtype=torch.long)
    kinds[:, 2] = 1
    return {
        "pixel_values": pixels(8, 48),
        "image_grid_thw": torch.tensor([[1, 2, 2], [1, 2, 2]]),
        "mm_token_type_ids": kinds,
    }


# model_type -> (config, image inputs of two rows, number of image tokens a row)
TINY = {
    "gemma3": (
        {"text_config": TEXT, "vision_config": VISION, "mm_tokens_per_image": 4, "image_token_id": IMAGE},
        square,
        4,
    ),
    "llava": (
        {
            "text_config": TEXT | {"model_type": "llama"},
            "vision_config": VISION | {"model_type": "clip_vision_model", "num_hidden_layers": 2},
            "image_token_id": IMAGE,
        },
        square,
        4,
    ),
    "mistral3": (
        {
            "text_config": TEXT | {"model_type": "mistral"},
            "vision_config": VISION | {"model_type": "pixtral", "head_dim": 4},
            "image_token_id": IMAGE,
            "spatial_merge_size": 2,
        },
        lambda: square() | {"image_sizes": torch.tensor([[8, 8], [8, 8]])},
        1,
    ),
    "qwen2_vl": (
        {
            "text_config": TEXT | {"rope_parameters": ROPE},
            "vision_config": QWEN | {"embed_dim": 8, "hidden_size": D, "mlp_ratio": 2},
            "image_token_id": IMAGE,
        },
        grid,
        1,
    ),
    "qwen2_5_vl": (
        {
            "text_config": TEXT | {"rope_parameters": ROPE},
            "vision_config": QWEN
            | {
                "hidden_size": 8,
                "intermediate_size": 16,
                "out_hidden_size": D,
                "fullatt_block_indexes": [0],
                "window_size": 8,
            },
            "image_token_id": IMAGE,
        },
        grid,
        1,
    ),
    "qwen3_vl": (
        {
            "text_config": TEXT | {"rope_parameters": ROPE},
            "vision_config": DEEPSTACK,
            "image_token_id": IMAGE,
        },
        grid,
        1,
    ),
    "qwen3_vl_moe": (
        {
            "text_config": TEXT | EXPERTS | {"rope_parameters": ROPE},
            "vision_config": DEEPSTACK,
            "image_token_id": IMAGE,
        },
        grid,
        1,
    ),
    "paligemma": (
        {
            "text_config": TEXT | {"model_type": "gemma2", "final_logit_softcapping": 3.0},
            "vision_config": VISION | {"model_type": "siglip_vision_model", "projection_dim": D},
            "image_token_id": IMAGE,
            "projection_dim": D,
        },
        square,
        4,
    ),
    "internvl": (
        {
            "text_config": TEXT | {"model_type": "qwen2"},
            "vision_config": VISION | {"image_size": [8, 8], "patch_size": [2, 2]},
            "image_token_id": IMAGE,
            "downsample_ratio": 0.5,
        },
        square,
        4,
    ),
    "idefics3": (
        {
            "text_config": TEXT | {"model_type": "llama"},
            "vision_config": VISION,
            "image_token_id": IMAGE,
            "scale_factor": 2,
            "pad_token_id": 0,
        },
        lambda: {"pixel_values": pixels(2, 1, 3, 8, 8)},
        1,
    ),
    "smolvlm": (
        {
            "text_config": TEXT | {"model_type": "llama"},
            "vision_config": VISION,
            "image_token_id": IMAGE,
            "scale_factor": 2,
            "pad_token_id": 0,
        },
        lambda: {"pixel_values": pixels(2, 1, 3, 8, 8)},
        1,
    ),
    "aya_vision": (
        {
            "text_config": TEXT | {"model_type": "cohere2", "logit_scale": 0.25},
            "vision_config": VISION | {"model_type": "siglip_vision_model"},
            "image_token_id": IMAGE,
            "downsample_factor": 2,
        },
        square,
        1,
    ),
    "cohere2_vision": (
        {
            "text_config": TEXT | {"model_type": "cohere2", "logit_scale": 0.25},
            "vision_config": VISION | {"model_type": "siglip_vision_model"},
            "image_token_id": IMAGE,
            "downsample_factor": 2,
            "alignment_intermediate_size": 24,
        },
        square,
        1,
    ),
    "vipllava": (
        {
            "text_config": TEXT | {"model_type": "llama"},
            "vision_config": VISION | {"model_type": "clip_vision_model", "num_hidden_layers": 2},
            "vision_feature_layers": [-1, -2],
            "image_token_id": IMAGE,
        },
        square,
        4,
    ),
    "lfm2_vl": (
        {
            "text_config": TEXT | {"model_type": "lfm2", "layer_types": ["conv", "full_attention"]},
            "vision_config": VISION | {"model_type": "siglip2_vision_model", "num_patches": 4},
            "image_token_id": IMAGE,
            "downsample_factor": 2,
            "projector_hidden_size": 16,
        },
        lambda: {
            "pixel_values": pixels(2, 4, 48),
            "spatial_shapes": torch.tensor([[2, 2], [2, 2]]),
            "pixel_attention_mask": torch.ones(2, 4, dtype=torch.long),
        },
        1,
    ),
    "qwen3_5": (
        {
            "text_config": TEXT | HYBRID | {"rope_parameters": ROPE},
            "vision_config": DEEPSTACK,
            "image_token_id": IMAGE,
        },
        grid,
        1,
    ),
    "qwen3_5_moe": (
        {
            "text_config": TEXT | HYBRID | EXPERTS | {"rope_parameters": ROPE, "shared_expert_intermediate_size": 24},
            "vision_config": DEEPSTACK,
            "image_token_id": IMAGE,
        },
        grid,
        1,
    ),
    "glm4v_moe": (
        {
            "text_config": TEXT
            | EXPERTS
            | {
                "rope_parameters": ROPE | {"partial_rotary_factor": 1.0},
                "num_experts": None,
                "n_routed_experts": 4,
                "n_group": 1,
                "topk_group": 1,
                "first_k_dense_replace": 1,
            },
            "vision_config": QWEN | {"hidden_size": 8, "intermediate_size": 16, "out_hidden_size": D, "image_size": 8},
            "image_token_id": IMAGE,
        },
        grid,
        1,
    ),
    "llava_next": (
        {
            "text_config": TEXT | {"model_type": "mistral"},
            "vision_config": VISION | {"model_type": "clip_vision_model", "num_hidden_layers": 2},
            "image_token_id": IMAGE,
            "image_grid_pinpoints": [[8, 8]],
        },
        lambda: {"pixel_values": pixels(2, 2, 3, 8, 8), "image_sizes": torch.tensor([[8, 8], [8, 8]])},
        10,
    ),
    "llava_onevision": (
        {
            "text_config": TEXT | {"model_type": "qwen2"},
            "vision_config": VISION | {"model_type": "siglip_vision_model"},
            "image_token_id": IMAGE,
            "image_grid_pinpoints": [[8, 8]],
        },
        lambda: {"pixel_values": pixels(2, 2, 3, 8, 8), "image_sizes": torch.tensor([[8, 8], [8, 8]])},
        10,
    ),
    "gemma4": (
        {
            "text_config": TEXT
            | {
                "final_logit_softcapping": 3.0,
                "vocab_size_per_layer_input": V,
                "hidden_size_per_layer_input": 8,
                "global_head_dim": 8,
                "num_global_key_value_heads": 1,
                "layer_types": ["sliding_attention", "full_attention"],
            },
            "vision_config": VISION
            | {"num_key_value_heads": 2, "head_dim": 4, "pooling_kernel_size": 2, "position_embedding_size": 8},
            "audio_config": None,
            "image_token_id": IMAGE,
        },
        lambda: {
            "pixel_values": pixels(2, 4, 48),
            "image_position_ids": torch.cartesian_prod(torch.arange(2), torch.arange(2)).expand(2, 4, 2),
        },
        1,
    ),
    "mllama": (
        {
            "text_config": TEXT
            | {"cross_attention_layers": [1], "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
            "vision_config": {
                "hidden_size": 8,
                "attention_heads": 2,
                "intermediate_size": 16,
                "num_hidden_layers": 1,
                "num_global_layers": 1,
                "image_size": 8,
                "patch_size": 4,
                "vision_output_dim": 16,
                "max_num_tiles": 1,
                "intermediate_layers_indices": [0],
                "supported_aspect_ratios": [[1, 1]],
            },
            "image_token_id": IMAGE,
        },
        lambda: {
            "pixel_values": pixels(2, 1, 1, 3, 8, 8),
            "aspect_ratio_ids": torch.ones(2, 1, dtype=torch.long),
            "aspect_ratio_mask": torch.ones(2, 1, 1, dtype=torch.long),
            "cross_attention_mask": torch.ones(2, LENGTH, 1, 1, dtype=torch.long),
        },
        1,
    ),
    "idefics2": (
        {
            "text_config": TEXT | {"model_type": "mistral"},
            "vision_config": VISION,
            "perceiver_config": {
                "hidden_size": D,
                "resampler_n_latents": 2,
                "resampler_depth": 1,
                "resampler_n_heads": 2,
                "resampler_head_dim": 8,
                "num_key_value_heads": 1,
            },
            "image_token_id": IMAGE,
        },
        lambda: {"pixel_values": pixels(2, 1, 3, 8, 8)},
        2,
    ),
    "got_ocr2": (
        {
            "text_config": TEXT | {"model_type": "qwen2"},
            "vision_config": {
                "hidden_size": 8,
                "output_channels": 4,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 32,
                "patch_size": 4,
                "mlp_dim": 16,
                "global_attn_indexes": [0],
                "window_size": 0,
            },
            "image_token_id": IMAGE,
        },
        lambda: square(size=32),
        4,
    ),
    "glm4v": (
        {
            "text_config": TEXT | {"rope_parameters": ROPE},
            "vision_config": QWEN | {"hidden_size": 8, "intermediate_size": 16, "out_hidden_size": D, "image_size": 8},
            "image_token_id": IMAGE,
        },
        grid,
        1,
    ),
}


def make_multimodal(model_type, *, seed=0, **changes):
    """A random model in evaluation mode, inputs with text alone and inputs with images."""
    transformers = pytest.importorskip("transformers")
    modeling = transformers.models.auto.modeling_auto
    if model_type not in modeling.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        pytest.skip(f"transformers {transformers.__version__} has no {model_type}")
    sizes, images, count = TINY[model_type]
    sizes = {**sizes, "text_config": {**sizes["text_config"], **changes}}
    torch.manual_seed(seed)
    config = transformers.AutoConfig.for_model(model_type, **sizes)
    model = randomised(transformers.AutoModelForImageTextToText.from_config(config))
    tokens = torch.randint(3, IMAGE - 5, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    labels = tokens.clone()
    labels[0, :7] = -100
    text = {"input_ids": tokens, "labels": labels}
    seen, targets = tokens.clone(), labels.clone()
    seen[:, 2 : 2 + count], targets[:, 2 : 2 + count] = IMAGE, -100
    pictured = {"input_ids": seen, "labels": targets, **images()}
    return model, text, pictured
