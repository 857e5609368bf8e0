"""What stands in place of a fused model's forward, where it is put, found again and taken out."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from ._forward import FusedLoss

__all__ = ["Forward", "current", "find", "install", "of_a_library", "set_current", "uninstall", "unprepare"]

_HANDLE = "_fused_loss"
_PREPARED = "_original_forward"  # accelerate keeps there what it has put autocast around
# What these put around a forward or hook into a module does the model's work.
_LIBRARIES = ("torch.", "transformers.", "accelerate.", "peft.", "deepspeed.")


class Forward:
    """What a fused model has in place of its forward; without a fused loss, or without labels, the model's own.

    An object and no function, so that it is pickled with its model, and without ``__dict__`` and ``__wrapped__``,
    which wrappers of accelerate would copy or look through.
    """

    __slots__ = ("before", "model")

    def __init__(self, model: nn.Module, before: Callable[..., Any] | None = None) -> None:
        self.model, self.before = model, before

    @property
    def __signature__(self) -> inspect.Signature:
        """Trainers read the argument names of forward."""
        return inspect.signature(type(self.model).forward.__get__(self.model))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        model, before = self.model, self.before
        if args and isinstance(args[0], nn.Module):  # accelerate's unwrap_model has bound it as a method
            model, before, args = args[0], before if args[0] is model else None, args[1:]
            if getattr(model.__dict__.get("forward"), "__func__", None) is self:  # which would not be pickled
                model.forward = self if model is self.model else Forward(model)
        if args:
            kwargs = _by_name(model, args, kwargs)
        fused = current(model)
        if fused is not None and (kwargs.get("labels") is not None or kwargs.get("shift_labels") is not None):
            return fused.forward(**kwargs)
        if fused is not None:
            from ._without_labels import check_labels_were_not_taken  # which imports from here

            check_labels_were_not_taken(model)
        own = type(model).forward.__get__(model) if before is None else before
        return own(**kwargs)


def current(model: Any) -> FusedLoss | None:
    """The fused loss that a model computes now, out of all its wrappers."""
    return model.__dict__.get(_HANDLE)


def set_current(model: Any, fused: FusedLoss | None) -> None:
    """Let a model on which :func:`install` was called compute a fused loss, or its own."""
    if fused is None:
        model.__dict__.pop(_HANDLE, None)
    else:
        model.__dict__[_HANDLE] = fused


def find(model: Any) -> Forward | None:
    """The :class:`Forward` that a model's forward leads to, through the wrappers of libraries."""
    forward = model.__dict__.get("forward")
    while forward is not None and not isinstance(forward, Forward):
        inner = getattr(forward, "__wrapped__", None) if of_a_library(forward) else None
        forward = inner or getattr(forward, "__func__", None)
    return forward


def of_a_library(function: Any) -> bool:
    """Whether a hook or a forward is written in torch, transformers or what works with them."""
    while isinstance(function, (functools.partial, types.MethodType)):
        function = function.func if isinstance(function, functools.partial) else function.__func__
    # functools.wraps copies __module__, but not the names that code sees
    names = getattr(function, "__globals__", None) or {"__name__": type(function).__module__}
    return str(names.get("__name__")).startswith(_LIBRARIES)


def install(model: Any, *, again: bool = False) -> None:
    """Put a :class:`Forward` into a model, around what is there unless that leads to one, or ``again``.

    Raises:
        ValueError: If accelerate has put autocast around the forward, which would not reach the loss.
    """
    if not again and find(model) is not None:
        return
    if _PREPARED in model.__dict__:
        raise ValueError(
            "model must be fused before accelerator.prepare, or a Trainer, puts autocast around its forward. Take it "
            "out again: accelerator.unwrap_model(model, keep_fp32_wrapper=False)."
        )
    model.forward = Forward(model, model.__dict__.get("forward"))


def unprepare(model: Any) -> None:
    """Take out autocast that an earlier trainer's accelerate has put around the forward; the next one puts its own."""
    if find(model) is None and (original := model.__dict__.pop(_PREPARED, None)) is not None:
        if getattr(original, "__func__", None) is type(model).forward:
            model.__dict__.pop("forward", None)
        else:
            model.forward = original


def uninstall(model: Any) -> None:
    """Take a :class:`Forward` out, unless something was put around it since."""
    forward = model.__dict__.get("forward")
    forward = getattr(forward, "__func__", forward)
    if isinstance(forward, Forward):
        if forward.before is None:
            del model.forward
        else:
            model.forward = forward.before


def _by_name(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments by name; a subclass's ``forward(self, *args, **kwargs)`` leaves the names to the class it calls."""
    for cls in type(model).__mro__:
        signature = inspect.signature(cls.forward) if "forward" in vars(cls) else None
        kinds = {} if signature is None else {p.kind: p.name for p in signature.parameters.values()}
        if signature is not None and inspect.Parameter.VAR_POSITIONAL not in kinds:
            break
    else:
        raise TypeError(f"arguments of {type(model).__name__} must be given by name.")
    given = dict(signature.bind(model, *args, **kwargs).arguments)
    rest = given.pop(kinds.get(inspect.Parameter.VAR_KEYWORD, ""), {})
    return {**dict(list(given.items())[1:]), **rest}
