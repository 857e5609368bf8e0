"""The outputs of a fused model: of the class that the model itself returns, with all its fields but the logits."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["field_names", "output_class", "own_output"]


def field_names(cls: Any) -> tuple[str, ...]:
    """Those of a class of outputs; apart from :func:`own_output`, as torch.compile cannot trace it."""
    return tuple(field.name for field in dataclasses.fields(cls))


def own_output(cls: Any, names: Sequence[str], outputs: Any, **fields: Any) -> Any:
    """Loss and what else there is, as the model would return it.

    Args:
        cls: The class of :func:`output_class`.
        names: Its :func:`field_names`.
        outputs: What its body returned, a mapping; fields of the same name are handed through.
        **fields: Further ones; those that the class does not have, and None, are left out.
    """
    found: Mapping[str, Any] = {**{name: outputs.get(name) for name in names}, **fields}
    return cls(**{name: found[name] for name in names if found.get(name) is not None})


def output_class(model: Any) -> Any:
    """The one that the annotation of the model's forward names; the plain one for code without annotation."""
    from transformers.modeling_outputs import CausalLMOutputWithPast  # pyright: ignore[reportMissingImports]
    from transformers.utils.generic import ModelOutput  # pyright: ignore[reportMissingImports]

    for owner in type(model).__mro__:  # a subclass's forward may name none
        forward = owner.__dict__.get("forward")
        try:
            hint = typing.get_type_hints(inspect.unwrap(forward)).get("return") if forward is not None else None
        except (NameError, TypeError):  # names that exist for type checkers alone
            continue
        for cls in (hint, *typing.get_args(hint)):
            if isinstance(cls, type) and issubclass(cls, ModelOutput) and hasattr(cls, "loss"):
                return cls
    return CausalLMOutputWithPast
