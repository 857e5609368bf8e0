"""The benchmark on a CPU by its former name, which the sidecar of ``chunked.csv`` mentions."""

import sys

from .benchmark.cpu import main

if __name__ == "__main__":
    sys.exit(main())
