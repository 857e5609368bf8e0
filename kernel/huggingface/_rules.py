"""What an architecture's rule says: body, scale and cap of the logits, auxiliary losses; and the rules there are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

__all__ = ["Architecture", "Extras", "HeadScale", "Rule"]


class HeadScale(NamedTuple):
    """Between hidden states and logits, besides the head: z = cap(logit_scale (h W^T + bias))."""

    logit_scale: float = 1.0
    softcap: float | None = None


Rule = Callable[[Any], HeadScale]


class Extras(NamedTuple):
    """What a model adds to its cross entropy, and what it returns besides."""

    loss: Any = None  # a scalar tensor, coefficient included; None for nothing
    fields: Mapping[str, Any] = {}  # of the output class


def head_alone(config: Any) -> HeadScale:
    """The logits are the head's."""
    return HeadScale()


def base_model(model: Any, arguments: dict[str, Any]) -> Any:
    """What most heads read."""
    return model.base_model(**arguments)


def nothing_known(model: Any, outputs: Any, arguments: dict[str, Any]) -> Extras:
    """The default: nothing is added, and a call that asks for an auxiliary loss of experts is refused."""
    return Extras()


def nothing_added(model: Any, outputs: Any, arguments: dict[str, Any]) -> Extras:
    """Nothing is added, whatever is asked for: the model itself returns the router's logits and leaves it at that."""
    return Extras()


class Architecture(NamedTuple):
    """How a causal language model gets from its inputs to its loss. Functions are module-level ones: models pickle.

    Attributes:
        scale: Text config -> scale and softcap of the logits. A field of the config that scales or caps logits and
            that this function does not read makes :func:`kernel.huggingface.fuse_loss` refuse the model.
        body: (model, arguments of the call but those of head and loss) -> outputs, whose ``last_hidden_state``
            (B, L, D) the head ``model.get_output_embeddings()`` reads.
        extras: (model, outputs of the body, all arguments of the call) -> auxiliary losses and more fields.
    """

    scale: Rule = head_alone
    body: Callable[[Any, dict[str, Any]], Any] = base_model
    extras: Callable[[Any, Any, dict[str, Any]], Extras] = nothing_known


# Scales and caps, each named after the fields it reads.


def final_softcap(config: Any) -> HeadScale:
    return HeadScale(softcap=config.final_logit_softcapping)


def final_softcap_if_any(config: Any) -> HeadScale:
    return HeadScale(softcap=getattr(config, "final_logit_softcapping", None))


def logits_soft_cap(config: Any) -> HeadScale:
    return HeadScale(softcap=config.logits_soft_cap)


def output_logit_soft_cap(config: Any) -> HeadScale:
    return HeadScale(softcap=config.output_logit_soft_cap)


def logit_scale(config: Any) -> HeadScale:
    return HeadScale(logit_scale=1.0 if config.logit_scale is None else config.logit_scale)


def divided_by_logits_scaling(config: Any) -> HeadScale:
    return HeadScale(logit_scale=1 / config.logits_scaling)


def times_logits_scaling(config: Any) -> HeadScale:
    return HeadScale(logit_scale=config.logits_scaling)


def lm_head_multiplier(config: Any) -> HeadScale:
    return HeadScale(logit_scale=config.lm_head_multiplier)


def of_the_wrapper(config: Any) -> HeadScale:
    """A wrapper around a language model, whose forward calls the head alone whatever the text config says."""
    for name in ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier"):
        getattr(config, name, None)
    return HeadScale()


def hidden_divided(config: Any) -> HeadScale:
    """The hidden states are divided, before the head and its bias: :func:`divided_hidden` does it."""
    for name in ("logits_scaling", "logits_mup_width_multiplier"):
        getattr(config, name, None)
    padded = getattr(config, "unpadded_vocab_size", None)
    if padded is not None and padded < config.vocab_size:
        raise ValueError(
            f"config.unpadded_vocab_size must be None or {config.vocab_size}, got {padded}: the model leaves out rows "
            "of its head, and the fused loss would not."
        )
    return HeadScale()


# Bodies that are not base_model alone.


def inner_model(model: Any, arguments: dict[str, Any]) -> Any:
    """Text models that call ``model.model`` under the prefix of a multimodal one."""
    return model.model(**arguments)


def divided_hidden(model: Any, arguments: dict[str, Any]) -> Any:
    """MiniCPM 3 and Inkling: h / s before the head."""
    outputs, config = base_model(model, arguments), model.config.get_text_config(decoder=True)
    by = getattr(config, "logits_mup_width_multiplier", None)
    outputs.last_hidden_state = outputs.last_hidden_state / (config.logits_scaling if by is None else by)
    return outputs


def transformed_hidden(model: Any, arguments: dict[str, Any]) -> Any:
    """ModernBERT's decoder: a dense layer, an activation and a norm before the head."""
    outputs = base_model(model, arguments)
    outputs.last_hidden_state = model.lm_head(outputs.last_hidden_state)
    return outputs
