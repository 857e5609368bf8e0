"""Output heads of public language models: hidden size, vocabulary, softcap, and the public config each was read from.

``vocab_size`` is the number of rows of the head, padding included, since every row takes part in the softmax. A source
outside the model's own repository is a public copy of its config, or the config of a model made from it, which has the
same head.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["HEAD_SHAPES", "HeadShape"]


class HeadShape(NamedTuple):
    """One head; ``tied`` says whether its weight is the input embedding."""

    model: str
    hidden_size: int
    vocab_size: int
    softcap: float | None
    tied: bool
    source: str


_HF = "https://huggingface.co/"
_GITHUB = "https://github.com/"
_GEMMA2_TIED = "; tied by default of transformers Gemma2Config"

HEAD_SHAPES = (
    HeadShape("EleutherAI/pythia-70m", 512, 50_304, None, False, _HF + "edbeeching/pythia-70M/blob/main/config.json"),
    HeadShape(
        "HuggingFaceTB/SmolLM-135M", 576, 49_152, None, True, _HF + "HuggingFaceTB/SmolLM-135M/blob/main/config.json"
    ),
    HeadShape(
        "Qwen/Qwen2.5-0.5B", 896, 151_936, None, True, _HF + "osllmai-community/Qwen2.5-0.5B/blob/main/config.json"
    ),
    HeadShape(
        "meta-llama/Llama-3.2-1B-Instruct",
        2048,
        128_256,
        None,
        True,
        _GITHUB + "kevinstephano/thunder_model_blocks/blob/main/thunder_model_blocks/hf_llama/llama_config.py",
    ),
    HeadShape(
        "google/gemma-2-2b",
        2304,
        256_000,
        30.0,
        True,
        _HF + "ModelSpace/GemmaX2-28-2B-Pretrain/blob/main/config.json" + _GEMMA2_TIED,
    ),
    HeadShape(
        "microsoft/Phi-3-mini-4k-instruct",
        3072,
        32_064,
        None,
        False,
        _HF + "qwp4w3hyb/Phi-3-mini-4k-instruct-iMat-GGUF/blob/main/config.json",
    ),
    HeadShape(
        "google/gemma-2-9b",
        3584,
        256_000,
        30.0,
        True,
        _HF + "rtzr/ko-gemma-2-9b-it/blob/main/config.json" + _GEMMA2_TIED,
    ),
    HeadShape(
        "Qwen/Qwen2.5-7B", 3584, 152_064, None, False, _HF + "EVA-UNIT-01/EVA-Qwen2.5-7B-v0.0/blob/main/config.json"
    ),
    HeadShape(
        "mistralai/Mistral-7B-v0.1",
        4096,
        32_000,
        None,
        False,
        _HF + "dfurman/Mistral-7B-v0.1-fork/blob/main/config.json",
    ),
    HeadShape(
        "meta-llama/Meta-Llama-3-8B",
        4096,
        128_256,
        None,
        False,
        _HF + "pandyamarut/Meta-Llama-3-8B/blob/main/config.json",
    ),
    HeadShape(
        "google/gemma-2-27b",
        4608,
        256_000,
        30.0,
        True,
        _GITHUB
        + "AI-Hypercomputer/maxtext/blob/028cf2f3d227b599278ba17f5732eadb4e951e47"
        + "/MaxText/utils/ckpt_conversion/utils/hf_model_configs.py"
        + "; vocabulary and tying by default of transformers Gemma2Config",
    ),
    HeadShape(
        "Qwen/Qwen2.5-72B", 8192, 152_064, None, False, _HF + "BitStack/BitStack-Qwen2.5-72B/blob/main/config.json"
    ),
)
