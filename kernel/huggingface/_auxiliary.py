"""The auxiliary loss of mixtures of experts, which balances their load: added as the model adds it."""

from __future__ import annotations

import inspect
import math
from typing import Any

from ._rules import Extras, base_model

__all__ = ["asked_for", "balanced_body", "load_balance", "load_balance_of_product_keys"]

_FUNCTION = "load_balancing_loss_func"


def asked_for(model: Any, arguments: dict[str, Any]) -> bool:
    """Whether a call, or else the text config, wants the router's logits and with them the auxiliary loss."""
    asked = arguments.get("output_router_logits")
    if asked is None:
        asked = getattr(_text_config(model), "output_router_logits", False)
    return bool(asked)


def balanced_body(model: Any, arguments: dict[str, Any]) -> Any:
    """The base model, told whether the router's logits are wanted: it may read another config."""
    return base_model(model, {**arguments, "output_router_logits": asked_for(model, arguments)})


def load_balance(model: Any, outputs: Any, arguments: dict[str, Any]) -> Extras:
    """Load balancing as Mixtral and its kin add it: over the tokens of the attention mask, times their coefficient.

    Raises:
        ValueError: If the model's own forward has no such loss, as in another version of transformers.
    """
    return _balance(model, outputs, arguments)


def load_balance_of_product_keys(model: Any, outputs: Any, arguments: dict[str, Any]) -> Extras:
    """Doge's: experts are pairs of keys, and there are none unless ``config.is_moe``."""
    if not model.config.is_moe:
        return Extras()
    return _balance(model, outputs, arguments, math.floor(math.sqrt(_number(model, "num_experts"))))


def _balance(model: Any, outputs: Any, arguments: dict[str, Any], *keys: int) -> Extras:
    if not asked_for(model, arguments):
        return Extras()
    function = _own_function(model)
    experts, chosen = _number(model, "num_experts"), _number(model, "num_experts_per_tok")
    loss = function(outputs.router_logits, int(experts), *keys, int(chosen), arguments.get("attention_mask"))
    if not hasattr(loss, "device"):  # 0 of a model without a layer of experts
        return Extras(fields={"aux_loss": loss})
    return Extras(_number(model, "router_aux_loss_coef", "aux_loss_coef") * loss, {"aux_loss": loss})


def _own_function(model: Any) -> Any:
    """The function that the model's own forward calls, for a subclass the one of the class it overrides."""
    for owner in type(model).__mro__:
        forward = owner.__dict__.get("forward")
        if forward is not None and _FUNCTION in (names := inspect.unwrap(forward).__globals__):
            return names[_FUNCTION]
    raise ValueError(
        f"output_router_logits must be False: {type(model).__name__} has no {_FUNCTION} in this version of "
        "transformers, so its auxiliary loss is not known."
    )


def _number(model: Any, *names: str) -> float:
    """What the model copied at construction, or its text config holds; as its own forward reads it."""
    for where in (model, _text_config(model)):
        for name in names:
            value = getattr(where, name, None)
            if isinstance(value, (int, float)):
                return value
    raise ValueError(
        f"config of {type(model).__name__} must hold {' or '.join(names)}, which its auxiliary loss needs."
    )


def _text_config(model: Any) -> Any:
    config = model.config
    return config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
