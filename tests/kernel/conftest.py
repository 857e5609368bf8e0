"""Triton's interpreter, without work that it does again at every call of a device function."""

from __future__ import annotations

import importlib.util

import pytest


@pytest.fixture(scope="session", autouse=True)
def language_is_patched_once_a_launch():
    """A third less time: the interpreter looks through the whole of triton.language at each call inside a kernel.

    What it exchanges there at the launch stays exchanged until the launch ends; only a module that the launch has not
    seen (triton.language.core, of functions of the library) has to be looked through.
    """
    if importlib.util.find_spec("triton") is None:
        yield
        return
    from triton import language
    from triton.runtime import interpreter

    patch, seen = interpreter._patch_lang, set()

    class Launch(interpreter._LangPatchScope):
        def restore(self):
            seen.clear()
            super().restore()

    def patch_once(function):
        modules = {id(m) for m in (language, language.core) if any(m is v for v in function.__globals__.values())}
        if seen and modules <= seen:
            return None
        outermost = not seen
        seen.update(modules)
        scope = patch(function)
        if outermost:
            scope.__class__ = Launch
        return scope

    with pytest.MonkeyPatch.context() as replaced:
        replaced.setattr(interpreter, "_patch_lang", patch_once)
        yield
