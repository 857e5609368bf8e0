"""How each known architecture makes its logits from the last hidden states: what to multiply by and where to cap."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from ..options import LossOptions

__all__ = ["HeadScale", "head_scale", "known_architectures", "register_architecture"]


class HeadScale(NamedTuple):
    """Between hidden states and logits, besides the head: z = cap(logit_scale h W^T + bias)."""

    logit_scale: float = 1.0
    softcap: float | None = None


Rule = Callable[[Any], HeadScale]


def _plain(config: Any) -> HeadScale:
    return HeadScale()


def _softcapped(config: Any) -> HeadScale:
    return HeadScale(softcap=config.final_logit_softcapping)


def _scaled(config: Any) -> HeadScale:
    return HeadScale(logit_scale=config.logit_scale)


def _divided(config: Any) -> HeadScale:
    return HeadScale(logit_scale=1 / config.logits_scaling)


# config.model_type -> rule. Each of them is tested against the model's own loss: tests/kernel/test_huggingface.py.
_RULES: dict[str, Rule] = {
    "cohere": _scaled,
    "cohere2": _scaled,
    "gemma": _plain,
    "gemma2": _softcapped,
    "gemma3_text": _softcapped,
    "gpt2": _plain,
    "gpt_neox": _plain,
    "granite": _divided,
    "llama": _plain,
    "mistral": _plain,
    "olmo2": _plain,
    "phi": _plain,
    "phi3": _plain,
    "qwen2": _plain,
    "qwen3": _plain,
    "smollm3": _plain,
    "stablelm": _plain,
    "starcoder2": _plain,
}


def known_architectures() -> tuple[str, ...]:
    """The ``config.model_type`` of every architecture whose logits are known, registered ones included.

    Example:
        >>> "gemma2" in known_architectures()
        True
    """
    return tuple(sorted(_RULES))


def register_architecture(model_type: str, rule: Rule = _plain) -> None:
    """Tell how an architecture makes its logits, so that its models can be fused.

    Only for causal models that call ``base_model``, then a linear head, then at most a scale and a softcap, and add
    nothing to the cross entropy (no auxiliary loss of experts). Compare the fused loss of a tiny random model with the
    model's own before you train with it.

    Args:
        model_type: ``config.model_type``; a known one is replaced.
        rule: Text config of the model -> its :class:`HeadScale`; the default is a head alone.

    Raises:
        TypeError: If an argument has the wrong type.

    Example:
        >>> register_architecture("mine", lambda config: HeadScale(softcap=config.cap))
        >>> "mine" in known_architectures()
        True
    """
    if not isinstance(model_type, str):
        raise TypeError(f"model_type must be a str, got {type(model_type).__name__}.")
    if not callable(rule):
        raise TypeError(f"rule must be a function of the config, got {type(rule).__name__}.")
    _RULES[model_type] = rule


def head_scale(model: Any) -> HeadScale:
    """Scale and softcap of a causal language model's logits, read from its config.

    Args:
        model: A transformers model with a language-model head.

    Returns:
        The scale, checked to be a number that :func:`kernel.linear_cross_entropy` takes.

    Raises:
        TypeError: If the model has no config.
        ValueError: If the architecture is not known, or its config holds a scale that is out of range.

    Example:
        >>> from types import SimpleNamespace
        >>> head_scale(SimpleNamespace(config=SimpleNamespace(model_type="granite", logits_scaling=8.0)))
        HeadScale(logit_scale=0.125, softcap=None)
    """
    config = getattr(model, "config", None)
    model_type = getattr(config, "model_type", None)
    if not isinstance(model_type, str):
        raise TypeError(f"model must be a transformers model with a config, got {type(model).__name__}.")
    if model_type not in _RULES:
        raise ValueError(
            f"model must be of an architecture whose logits are known ({', '.join(known_architectures())}), got "
            f"{model_type!r} ({type(model).__name__}). If its logits are head(base_model(...)), at most scaled and "
            f"capped, call kernel.huggingface.register_architecture({model_type!r}, rule) and compare the fused loss "
            "with the model's own."
        )
    scale = _RULES[model_type](config)
    checked = LossOptions(logit_scale=scale.logit_scale, softcap=scale.softcap)
    return HeadScale(checked.logit_scale, checked.softcap)
