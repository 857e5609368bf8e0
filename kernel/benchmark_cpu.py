"""The benchmark on a CPU by its former name, which the sidecar of ``chunked.csv`` mentions."""

from __future__ import annotations

import sys

from .benchmark.cpu import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
