"""Programs that run in several processes of one group."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# A program finds rank, world, folder, arguments and dist. It ends without the interpreter's last steps: gloo's threads
# may hold tensors for a moment after a call and abort when they let go of them while Python ends.
_BEGIN = """
import os, sys
import torch
import torch.distributed as dist

rank, world, backend, folder, *arguments = sys.argv[1:]
rank, world = int(rank), int(world)
if "nccl" in backend:
    torch.cuda.set_device(rank)
dist.init_process_group(backend, init_method=f"file://{folder}/meet", rank=rank, world_size=world)
"""
_END = """
dist.destroy_process_group()
sys.stdout.flush()
os._exit(0)
"""


def in_processes(program: str, world: int, folder: Path, *arguments: str, backend: str = "gloo") -> list[str]:
    """Run ``program`` in ``world`` processes that meet in ``folder``; all have to succeed.

    Returns:
        What each printed.
    """
    command = [sys.executable, "-W", "ignore", "-c", _BEGIN + program + _END]
    workers = [
        subprocess.Popen(
            [*command, str(rank), str(world), backend, str(folder), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    try:
        found = [worker.communicate(timeout=300) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0] * world, [error[-3000:] for _, error in found]
    return [out for out, _ in found]
