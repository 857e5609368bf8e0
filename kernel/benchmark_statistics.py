"""The benchmark of the statistics by its former name, which the sidecar of ``statistics.csv`` mentions."""

import sys

from .benchmark.head_statistics import main

if __name__ == "__main__":
    sys.exit(main())
