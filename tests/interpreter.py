"""Triton's interpreter without work that it throws away: half of the time, the same results."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from typing import Any

__all__ = ["quicken"]


def quicken(replace: Callable[[Any, str, Any], None] = setattr) -> None:
    """Let calls inside a kernel leave triton.language as the launch patched it, and look for no overflow in vain.

    ``replace(object, name, value)`` is what puts the quicker parts in.
    """
    from triton.runtime import interpreter

    _patch_once_a_launch(interpreter, replace)
    options = interpreter.interpreter_builder.options
    # Sums of integers are made twice to compare them, and the assertion on it is dropped unless debug is set.
    checked = dataclasses.replace(options, sanitize_overflow=options.debug)
    replace(interpreter.interpreter_builder, "options", checked)


def _patch_once_a_launch(interpreter: Any, replace: Callable[[Any, str, Any], None]) -> None:
    """Let calls inside a kernel skip the patch of triton.language, which looks through the whole of it each time.

    What a launch exchanges stays exchanged until it ends. Only a module that the launch has not seen
    (``triton.language.core``, of functions of Triton's library) has to be looked through at a call inside it. Device
    functions that are called outside a launch, and kernels that fail, are left to Triton.
    """
    from triton import language

    patch, launch = interpreter._patch_lang, interpreter.GridExecutor.__call__
    inside = threading.local()

    def patch_once(function):
        if (seen := getattr(inside, "seen", None)) is None:
            return patch(function)
        modules = {id(m) for m in (language, language.core) if any(m is v for v in function.__globals__.values())}
        if seen and modules <= seen:
            return None  # only a launch uses the result, and its own call comes first
        seen |= modules
        return patch(function)

    def launch_and_forget(executor, *arguments, **options):
        outer, inside.seen = getattr(inside, "seen", None), set()
        try:
            return launch(executor, *arguments, **options)
        finally:
            inside.seen = outer

    replace(interpreter, "_patch_lang", patch_once)
    replace(interpreter.GridExecutor, "__call__", launch_and_forget)
