"""The benchmark of the statistics by its former name, which the sidecar of ``statistics.csv`` mentions."""

from __future__ import annotations

import sys

from .benchmark.head_statistics import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
