"""Tune a real language model on real questions: ``python -m analysis.instruction --help``."""

import sys

from .study.real_tuning.__main__ import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
