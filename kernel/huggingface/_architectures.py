"""How each known architecture gets from its inputs to its loss: body, scale and cap of the logits, auxiliary losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ..options import LossOptions

__all__ = [
    "Architecture",
    "Extras",
    "HeadScale",
    "architecture_of",
    "head_scale",
    "known_architectures",
    "register_architecture",
]


class HeadScale(NamedTuple):
    """Between hidden states and logits, besides the head: z = cap(logit_scale (h W^T + bias))."""

    logit_scale: float = 1.0
    softcap: float | None = None


Rule = Callable[[Any], HeadScale]


class Extras(NamedTuple):
    """What a model adds to its cross entropy, and what it returns besides."""

    loss: Any = None  # a scalar tensor, coefficient included; None for nothing
    fields: Mapping[str, Any] = {}  # of the output class


def _plain(config: Any) -> HeadScale:
    return HeadScale()


def _base_model(model: Any, arguments: dict[str, Any]) -> Any:
    return model.base_model(**arguments)


def _no_extras(model: Any, outputs: Any, arguments: dict[str, Any]) -> Extras:
    return Extras()


def _output_class() -> type:
    from transformers.modeling_outputs import CausalLMOutputWithPast  # pyright: ignore[reportMissingImports]

    return CausalLMOutputWithPast


class Architecture(NamedTuple):
    """How a causal language model gets from its inputs to its loss. Functions are module-level ones: models pickle.

    Attributes:
        scale: Config -> scale and softcap of the logits.
        body: (model, arguments of the call but those of head and loss) -> outputs, whose ``last_hidden_state``
            (B, L, D) the head ``model.get_output_embeddings()`` reads.
        extras: (model, outputs of the body, all arguments of the call) -> auxiliary losses and more fields.
        output_class: -> class of the model's outputs.
    """

    scale: Rule = _plain
    body: Callable[[Any, dict[str, Any]], Any] = _base_model
    extras: Callable[[Any, Any, dict[str, Any]], Extras] = _no_extras
    output_class: Callable[[], type] = _output_class


def _softcapped(config: Any) -> HeadScale:
    return HeadScale(softcap=config.final_logit_softcapping)


def _scaled(config: Any) -> HeadScale:
    return HeadScale(logit_scale=config.logit_scale)


def _divided(config: Any) -> HeadScale:
    return HeadScale(logit_scale=1 / config.logits_scaling)


# By config.model_type. Each is tested against the model's own loss: tests/kernel/test_huggingface.py.
_RULES: dict[str, Architecture] = {
    "cohere": Architecture(_scaled),
    "cohere2": Architecture(_scaled),
    "gemma": Architecture(),
    "gemma2": Architecture(_softcapped),
    "gemma3_text": Architecture(_softcapped),
    "gpt2": Architecture(),
    "gpt_neox": Architecture(),
    "granite": Architecture(_divided),
    "llama": Architecture(),
    "mistral": Architecture(),
    "olmo2": Architecture(),
    "phi": Architecture(),
    "phi3": Architecture(),
    "qwen2": Architecture(),
    "qwen3": Architecture(),
    "smollm3": Architecture(),
    "stablelm": Architecture(),
    "starcoder2": Architecture(),
}


def known_architectures() -> tuple[str, ...]:
    """The ``config.model_type`` of every architecture whose logits are known, registered ones included.

    Example:
        >>> "gemma2" in known_architectures()
        True
    """
    return tuple(sorted(_RULES))


def register_architecture(model_type: str, rule: Rule | Architecture = _plain) -> None:
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
    if not isinstance(rule, Architecture) and not callable(rule):
        raise TypeError(f"rule must be a function of the config, got {type(rule).__name__}.")
    _RULES[model_type] = rule if isinstance(rule, Architecture) else Architecture(rule)


def architecture_of(model: Any) -> Architecture:
    """The architecture of a transformers model, by its ``config.model_type``.

    Raises:
        TypeError: If the model has no config.
        ValueError: If the architecture is not known.
    """
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if not isinstance(model_type, str):
        raise TypeError(f"model must be a transformers model with a config, got {type(model).__name__}.")
    if model_type not in _RULES:
        raise ValueError(
            f"model must be of an architecture whose logits are known ({', '.join(known_architectures())}), got "
            f"{model_type!r} ({type(model).__name__}). If its logits are head(base_model(...)), at most scaled and "
            f"capped, call kernel.huggingface.register_architecture({model_type!r}, rule)."
        )
    return _RULES[model_type]


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
    scale = architecture_of(model).scale(model.config)
    checked = LossOptions(logit_scale=scale.logit_scale, softcap=scale.softcap)
    return HeadScale(checked.logit_scale, checked.softcap)
