"""Which kernels begin before the one ahead of them has ended, and what they wait for.

On Hopper a kernel may be launched beside the one ahead of it in its stream (programmatic dependent launch): its
programs begin where multiprocessors are free, once every program of that one has said so (``let_next_begin``). The
kernels of a strip have a program for each multiprocessor, whose last tile ends earlier on some than on others; there
the next kernel's first tile is under way before the last one ends, and nothing waits for a launch.

A strip takes three kernels: dz, the weight's gradient, the input's gradient. What keeps them apart is this rule:

1. A kernel that begins early waits (``wait_for_previous``) before it ends, even if it has nothing to do. When it is
   complete, so is the kernel ahead of it; a kernel that is launched as usual finds everything before it complete.
2. Until it waits it reads nothing that is still written, and writes nothing that is still read. Two are *independent*
   of the kernel ahead in that sense and wait late; the same kernels wait at once wherever they follow another one:

   - the input's gradient behind the weight's, of a strip or of a round of listed tiles. Both read its dz, which is
     complete, since the weight's is launched as usual. One writes rows of the head's gradient, in which dz may lie
     elsewhere, the other the accumulator, which nobody else touches. It waits at its end.
   - the next strip's dz, of logits anew, behind either gradient of this strip. It reads hidden states and head, and
     waits before it stores its first tile where the other may still read the dz before.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .launch import Launch

__all__ = ["begins_early", "let_next_begin", "wait_for_previous"]


@triton.jit
def let_next_begin(NEXT_EARLY: tl.constexpr):
    """Let the kernel behind this one begin where a multiprocessor is free, if it is one that begins early."""
    if NEXT_EARLY:
        gdc_launch_dependents()


@triton.jit
def wait_for_previous(EARLY: tl.constexpr):
    """Wait until the kernel ahead of this one is complete and what it wrote can be read."""
    if EARLY:
        gdc_wait()


def begins_early(launch: Launch, *, descriptor: bool) -> dict[str, Any]:
    """Return the arguments that say whether a kernel begins early.

    It does so only where the copy engine loads (``descriptor``), past the caches of a multiprocessor.
    """
    early = descriptor and launch.early
    return {"EARLY": early} | ({"launch_pdl": True} if early else {})
