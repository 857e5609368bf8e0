"""The architectures of transformers that are known, each tested against its own loss, and those that cannot be fused.

Test of all of them: ``tests/kernel/test_huggingface_models.py``, from tiny random models.
"""

from __future__ import annotations

from . import _rules as rules
from ._auxiliary import balanced_body, load_balance, load_balance_of_product_keys
from ._rules import Architecture

__all__ = ["KNOWN", "MULTIMODAL", "REFUSED"]


def _all(names: str, architecture: Architecture) -> dict[str, Architecture]:
    return dict.fromkeys(names.split(), architecture)


def _scaled(scale: rules.Rule) -> Architecture:
    return Architecture(scale, extras=rules.nothing_added)


def _scaled_and_balanced(scale: rules.Rule) -> Architecture:
    return Architecture(scale, balanced_body, load_balance)


# A head on the base model and nothing else. Mixtures of experts in this list add no auxiliary loss.
_ALONE = """
    afmoe apertus arcee aria_text axk1 axk2 bailing_hybrid bamba bert-generation biogpt bitnet bloom codegen ctrl cwm
    deepseek_v2 deepseek_v3 deepseek_v32 diffllama dots1 dots3_note_text ernie4_5 exaone4 exaone_moe falcon falcon_mamba
    gemma glm glm4 glm4_moe glm4_moe_lite glm_moe_dsa gpt2 gpt_bigcode gpt_neo gpt_neox gpt_neox_japanese gptj helium
    hrm_text hunyuan_v1_dense hunyuan_v1_moe hy_v3 hy_v4 internlm3 iquestcoder jais2 kimi_linear kolibri1 lfm2 lfm2_moe
    lfm3 llama longcat_flash mamba mamba2 mimo_v2_flash ministral ministral3 mistral moshi mpt nemotron nemotron_h olmo
    olmo2 olmo3 olmo_hybrid openai-gpt opt persimmon phi phi3 qwen2 qwen3 qwen3_5_text rwkv seed_oss smollm3 solar_open
    stablelm starcoder2 xglm youtu zamba zamba2 zaya
"""
# The same with the load balancing of Mixtral.
_BALANCED = """
    dbrx deepseek_v4 ernie4_5_moe flex_olmo flint gpt_oss jamba jetmoe laguna mellum minimax minimax_m2
    minimax_m3_vl_text mixtral olmoe phimoe qwen2_moe qwen3_5_moe_text qwen3_moe qwen3_next qwen4_exp_text
"""
# Multimodal models: a head on a base model that takes images too, whatever the text config says of scales and caps.
_WRAPPERS = """
    aya_vision cohere2_vision gemma3 glm4v got_ocr2 idefics2 idefics3 internvl lfm2_vl llava llava_next llava_onevision
    mistral3 mllama qwen2_5_vl qwen2_vl qwen3_5 qwen3_vl smolvlm vipllava
"""
_BALANCED_WRAPPERS = "glm4v_moe qwen3_5_moe qwen3_vl_moe"

KNOWN: dict[str, Architecture] = {
    **_all(_ALONE, _scaled(rules.head_alone)),
    **_all(_BALANCED, _scaled_and_balanced(rules.head_alone)),
    **_all(_WRAPPERS, _scaled(rules.of_the_wrapper)),
    **_all(_BALANCED_WRAPPERS, _scaled_and_balanced(rules.of_the_wrapper)),
    "beam": _scaled(rules.final_softcap),
    "cohere": _scaled(rules.logit_scale),
    "cohere2": _scaled(rules.logit_scale),
    "cohere2_moe": _scaled(rules.logit_scale),
    "cohere_compass_text": _scaled(rules.logit_scale),
    "doge": Architecture(rules.head_alone, balanced_body, load_balance_of_product_keys),
    "falcon_h1": _scaled(rules.lm_head_multiplier),
    "gemma2": _scaled(rules.final_softcap),
    "gemma3_text": _scaled(rules.final_softcap),
    "gemma3n_text": _scaled(rules.final_softcap),
    "gemma4": _scaled(rules.final_softcap),
    "gemma4_text": _scaled(rules.final_softcap),
    "gemma4_unified_text": _scaled(rules.final_softcap),
    "granite": _scaled(rules.divided_by_logits_scaling),
    "granite_swa": _scaled(rules.divided_by_logits_scaling),
    "granitemoe": _scaled_and_balanced(rules.divided_by_logits_scaling),
    "granitemoe_swa": _scaled_and_balanced(rules.divided_by_logits_scaling),
    "granitemoehybrid": _scaled_and_balanced(rules.divided_by_logits_scaling),
    "granitemoeshared": _scaled_and_balanced(rules.divided_by_logits_scaling),
    "hyperclovax": _scaled(rules.times_logits_scaling),
    "inkling_text": Architecture(rules.hidden_divided, rules.divided_hidden, rules.nothing_added),
    "llama4_text": Architecture(rules.head_alone, rules.inner_model, rules.nothing_added),
    "minicpm3": Architecture(rules.hidden_divided, rules.divided_hidden, rules.nothing_added),
    "modernbert-decoder": Architecture(rules.head_alone, rules.transformed_hidden, rules.nothing_added),
    "nanochat": _scaled(rules.final_softcap),
    "paligemma": _scaled(rules.final_softcap_if_any),
    "recurrent_gemma": _scaled(rules.logits_soft_cap),
    "vaultgemma": _scaled(rules.final_softcap),
    "xlstm": _scaled(rules.output_logit_soft_cap),
}
# Those that take images.
MULTIMODAL = tuple(sorted([*_WRAPPERS.split(), *_BALANCED_WRAPPERS.split(), "gemma4", "paligemma"]))

_UNSHIFTED = "its own loss does not shift the labels by one"
_DEEP_HEAD = "its head is more than one linear layer"
_BY_REASON = {
    _UNSHIFTED: "bart bigbird_pegasus blenderbot blenderbot-small cpmant marian mbart mvp pegasus plbart trocr whisper "
    "xlm xlnet",
    _DEEP_HEAD: "bert big_bird camembert data2vec-text electra ernie megatron-bert rembert roberta "
    "roberta-prelayernorm roc_bert roformer xlm-roberta xlm-roberta-xl xmod",
    "it has a head for each codebook": "musicgen musicgen_melody",
    "it predicts several tokens at once": "prophetnet",
    "its loss is another one at each call, so that none can be compared": "reformer",
    "its own loss leaves out the image tokens at the front": "git",
    "it takes image tokens out of the logits": "chameleon",
    "it leaves out rows of its head": "inkling2_text inkling2",
    "its language model has a head of its own": "blip-2 instructblip instructblipvideo llama4 nemotron_h_omni",
}
# config.model_type -> why it is refused.
REFUSED: dict[str, str] = {name: why for why, names in _BY_REASON.items() for name in names.split()}
