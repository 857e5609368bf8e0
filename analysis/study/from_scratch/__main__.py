"""Name the files that S12 reads: ``python -m analysis.study.from_scratch --help``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ...command import finish, output_folder, parser_of, shown
from .corpus import prepare

__all__ = ["main"]

_EXAMPLES = """
examples:
  python -m analysis.study.from_scratch gcide.dict.dz wn.dict.dz --pairs pairs.jsonl.gz
  python -m analysis.study run S12 --preset full --device cuda --workers 14 --max-minutes 8

Texts are in UTF-8, plain or packed by gzip; pairs are JSON lines of instruction, input and response. Their paths and
SHA-256 are noted in OUT/shared/S12; the files must stay where they are until the run is done.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Note the files; returns the exit status."""
    parser = parser_of("analysis.study.from_scratch", "Name the real text that S12 reads in preset full.", _EXAMPLES)
    parser.add_argument("texts", nargs="+", type=Path, metavar="FILE", help="text to pretrain on, 60 MB or more")
    parser.add_argument("--pairs", type=Path, required=True, metavar="FILE", help="instruction pairs to tune on")
    out = output_folder() / "full"
    parser.add_argument("--out", type=Path, default=out, metavar="DIR", help=f"of the run (default: {shown(out)})")
    return finish(lambda: _prepare(parser.parse_args(arguments)))


def _prepare(options: argparse.Namespace) -> int:
    corpus = prepare(options.texts, options.pairs, options.out / "shared" / "S12")
    for source in corpus.sources:
        print(f"{source['name']:30}{source['bytes']:>12}  {source['sha256']}")
    characters = sum(map(len, corpus.text))
    print(f"{characters} characters to pretrain on, {len(corpus.pairs)} pairs to tune on, {corpus.digest}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
