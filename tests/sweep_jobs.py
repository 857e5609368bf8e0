"""Work for the tests of sweeps, in a module of its own: fresh processes import it by name."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from analysis.lab.sweep import run


@dataclass(frozen=True)
class Square:
    """A number to square, and what to do on the way."""

    number: int
    event: str = ""
    log: str = ""
    seconds: float = 0.0


def square(config: Square) -> dict[str, object]:
    """The square of a number; leaves a line in the log for every time it is computed."""
    if config.log:
        with Path(config.log).open("a") as file:
            file.write(f"{config.number}\n")
    time.sleep(config.seconds)
    if config.event == "error":
        raise RuntimeError(f"cannot square {config.number}")
    if config.event == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if config.event == "tensor":
        import torch  # here alone: it takes longer than all else that a worker does

        return {"square": torch.tensor(config.number)}
    return {
        "number": config.number,
        "square": config.number**2 if config.event != "inf" else float("inf"),
        "omp": os.environ.get("OMP_NUM_THREADS"),
        "process": os.getpid(),
    }


def threads(config: Square) -> dict[str, object]:
    """How many threads torch and OpenMP take in a worker."""
    import torch

    return {"number": config.number, "torch": torch.get_num_threads(), "omp": os.environ.get("OMP_NUM_THREADS")}


def jobs(folder: str, seconds: float = 0.1, count: int = 24) -> list[Square]:
    """Numbers that take a while, logged in the folder."""
    return [Square(number, log=str(Path(folder) / "log"), seconds=seconds) for number in range(count)]


def one_after_another(function, configs, size, enough, take):
    """An engine without processes."""
    for config in configs:
        if take(config):
            yield config, function(config), None


if __name__ == "__main__":
    engine = one_after_another if "serial" in sys.argv else None
    run(square, jobs(sys.argv[1], float(sys.argv[2])), Path(sys.argv[1]) / "rows", workers=2, engine=engine)
