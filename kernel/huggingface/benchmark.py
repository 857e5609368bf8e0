"""The benchmark of a training step by its former name, which the sidecar of ``training_step.csv`` mentions."""

from __future__ import annotations

import sys

from ..benchmark.training_step import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
