"""Kernels that begin before the one ahead of them has ended."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .launch import Launch

__all__ = ["begins_early", "let_next_begin", "wait_for_previous"]


@triton.jit
def let_next_begin(NEXT_EARLY: tl.constexpr):
    """Let the kernel behind this one begin where a multiprocessor is free."""
    if NEXT_EARLY:
        gdc_launch_dependents()


@triton.jit
def wait_for_previous(EARLY: tl.constexpr):
    """Wait until the kernel ahead of this one is complete."""
    if EARLY:
        gdc_wait()


def begins_early(on: bool, launch: Launch, following: Launch) -> dict[str, Any]:
    """Keywords of a kernel."""
    early, next_early = on and launch.early, on and following.early
    return {"EARLY": early, "NEXT_EARLY": next_early} | ({"launch_pdl": True} if early else {})
