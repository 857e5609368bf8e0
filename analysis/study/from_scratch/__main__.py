"""Name the files that S12 reads: ``python -m analysis.study.from_scratch --help``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ...command import finish, output_folder, parser_of, shown
from .corpus import prepare
from .text_grid import TextConfig, configs
from .tokens import fitting, tokenizer_in

__all__ = ["main"]

_EXAMPLES = """
examples:
  python -m analysis.study.from_scratch gcide.dict.dz wn.dict.dz --pairs pairs.jsonl.gz
  python -m analysis.study run S12 --preset full --device cuda --workers 6 --max-minutes 5

Texts are in UTF-8, plain or packed by gzip; pairs are JSON lines of instruction, input and response. Their paths, from
that folder, and SHA-256 are noted in OUT/shared/S12, and byte-level vocabularies trained on the texts are written
there, which takes minutes on a CPU once; the files must stay where they are until the run is done.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Note the files; returns the exit status."""
    parser = parser_of("analysis.study.from_scratch", "Name the real text that S12 reads in preset full.", _EXAMPLES)
    parser.add_argument("texts", nargs="+", type=Path, metavar="FILE", help="text to pretrain on, 60 MB or more")
    parser.add_argument("--pairs", type=Path, required=True, metavar="FILE", help="instruction pairs to tune on")
    cells = configs("full")
    sizes = sorted({cell.vocab_size for cell in cells})
    parser.add_argument(
        "--vocab-sizes",
        type=int,
        nargs="+",
        default=sizes,
        metavar="V",
        help=f"to train (default: {sizes})",
    )
    out = output_folder() / "full"
    parser.add_argument("--out", type=Path, default=out, metavar="DIR", help=f"of the run (default: {shown(out)})")
    return finish(lambda: _prepare(parser.parse_args(arguments), cells[0]))


def _prepare(options: argparse.Namespace, cell: TextConfig) -> int:
    folder = options.out / "shared" / "S12"
    corpus = prepare(options.texts, options.pairs, folder)
    least = min(options.vocab_sizes)
    made = {size: tokenizer_in(folder, corpus, size, cell.characters) for size in options.vocab_sizes}
    fit = fitting(made[least], corpus.pairs, cell.trunk.context, cell.most_bytes)
    for source in corpus.sources:
        print(f"{source['name']:30}{source['bytes']:>12}  {source['sha256']}")
    characters = sum(map(len, corpus.text))
    print(f"{characters} characters to pretrain on, {len(corpus.pairs)} pairs to tune on, {corpus.digest}")
    print(
        f"{len(fit)} of these pairs have at most {cell.trunk.context} tokens at V = {least}, responses cut to "
        f"{cell.most_bytes} bytes; {cell.examples} are tuned on"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
