"""Triton's interpreter where there is no GPU, without work that it throws away: half of the time, the same results."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import threading
from typing import Any

import pytest
import torch

if not torch.cuda.is_available():  # before any test imports the kernels
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session", autouse=True)
def quick_interpreter():
    """Calls inside a kernel leave triton.language as the launch patched it, and no overflow is looked for in vain."""
    if importlib.util.find_spec("triton") is None:
        yield
        return
    from triton.runtime import interpreter

    with pytest.MonkeyPatch.context() as replaced:
        patch_once_a_launch(interpreter, replaced)
        options = interpreter.interpreter_builder.options
        # Sums of integers are made twice to compare them, and the assertion on it is dropped unless debug is set.
        checked = dataclasses.replace(options, sanitize_overflow=options.debug)
        replaced.setattr(interpreter.interpreter_builder, "options", checked)
        yield


def patch_once_a_launch(interpreter: Any, replaced: pytest.MonkeyPatch) -> None:
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

    replaced.setattr(interpreter, "_patch_lang", patch_once)
    replaced.setattr(interpreter.GridExecutor, "__call__", launch_and_forget)
