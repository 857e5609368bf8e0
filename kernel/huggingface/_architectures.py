"""Which architectures can be fused: the known ones, those that users register, and why others are refused."""

from __future__ import annotations

import re
from typing import Any

from ..options import LossOptions
from ._known import KNOWN, REFUSED
from ._rules import Architecture, Extras, HeadScale, Rule, head_alone

__all__ = [
    "Architecture",
    "Extras",
    "HeadScale",
    "architecture_of",
    "head_scale",
    "known_architectures",
    "register_architecture",
    "scale_of",
]

_RULES = dict(KNOWN)
# Names of fields that scale or cap logits, or add something of them to the loss; not those of attention or of routers.
_SCALES = re.compile(
    r"(?!.*(attn|attention|router|contrastive|_init|gate_))"
    r"(.*(logit|lm_head|output).*(scal|soft_?cap|_cap$|multiplier|temperature)|softcap$|z_loss|unpadded_vocab)"
)


def known_architectures() -> tuple[str, ...]:
    """The ``config.model_type`` of every architecture whose logits are known, registered ones included.

    Example:
        >>> "gemma2" in known_architectures()
        True
    """
    return tuple(sorted(_RULES))


def register_architecture(model_type: str, rule: Rule | Architecture = head_alone) -> None:
    """Tell how an architecture makes its logits, so that its models can be fused.

    A rule alone is for causal models that call ``base_model``, then a linear head, then at most a scale and a softcap,
    and add nothing to the cross entropy. An :class:`Architecture` says what else there is: for the auxiliary loss of
    Mixtral and its kin ``Architecture(body=balanced_body, extras=load_balance)``. On fusing, the loss is compared with
    the model's own.

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
        ValueError: If the architecture is not known, or is one that cannot be fused: the text says why.
    """
    config = getattr(model, "config", None)
    model_type = getattr(config, "model_type", None)
    name = type(model).__name__
    if not isinstance(model_type, str):
        raise TypeError(f"model must be a transformers model with a config, got {name}.")
    if getattr(config, "is_encoder_decoder", False):
        _refuse(f"a decoder alone, got the encoder-decoder {name}: its decoder reads the labels, unshifted")
    if name.endswith("ForMaskedLM") or getattr(model, "loss_type", None) == "ForMaskedLM":
        _refuse(f"a causal language model, got the masked one {name}: its labels are not the next tokens")
    if model_type in _RULES:
        return _RULES[model_type]
    if model_type in REFUSED:
        _refuse(f"a head, scale and cap on a causal base model, got {name} ({model_type!r}): {REFUSED[model_type]}")
    raise ValueError(
        f"model must be of an architecture whose logits are known (kernel.huggingface.known_architectures() lists "
        f"{len(_RULES)}), got {model_type!r} ({name}). If its logits are head(base_model(...)), at most scaled and "
        f"capped, call kernel.huggingface.register_architecture({model_type!r}, rule)."
    )


def _refuse(what: str) -> None:
    raise ValueError(f"model must be {what}. Train it with its own loss.")


class _View:
    """A text config as a rule sees it: remembers what was read, and a number that the model copied counts first."""

    def __init__(self, model: Any) -> None:
        self._model, self._config = model, _text_config(model.config)
        self._read: list[str] = []

    def __getattr__(self, name: str) -> Any:
        self._read.append(name)
        value, copy = getattr(self._config, name), getattr(self._model, "__dict__", {}).get(name)
        return copy if isinstance(copy, (int, float)) else value


def _text_config(config: Any) -> Any:
    return config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config


def head_scale(model: Any) -> HeadScale:
    """Scale and softcap of a causal language model's logits, read from its config.

    Args:
        model: A transformers model with a language-model head.

    Returns:
        The scale, checked to be a number that :func:`kernel.linear_cross_entropy` takes.

    Raises:
        TypeError: If the model has no config.
        ValueError: If the architecture is not known, its config holds a scale that is out of range, or has another
            field that scales or caps logits: one that the rule does not read, and neither None, nor 0, nor 1.

    Example:
        >>> from types import SimpleNamespace
        >>> head_scale(SimpleNamespace(config=SimpleNamespace(model_type="granite", logits_scaling=8.0)))
        HeadScale(logit_scale=0.125, softcap=None)
    """
    architecture, view = architecture_of(model), _View(model)
    scale = _checked(architecture.scale(view))
    for name, value in sorted(vars(view._config).items()):
        if name not in view._read and value not in (None, 0, 1) and _SCALES.match(name):
            raise ValueError(
                f"config.{name} must be unset, got {value!r}: the rule of {model.config.model_type!r} does not read it,"
                " and it may change the logits or the loss. Register a rule that does "
                "(kernel.huggingface.register_architecture)."
            )
    return scale


def scale_of(model: Any, architecture: Architecture) -> HeadScale:
    """As :func:`head_scale`, by an architecture that is known already and whose fields have been looked through."""
    return _checked(architecture.scale(_View(model)))


def _checked(scale: HeadScale) -> HeadScale:
    checked = LossOptions(logit_scale=scale.logit_scale, softcap=scale.softcap)
    return HeadScale(checked.logit_scale, checked.softcap)
