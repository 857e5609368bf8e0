"""Command that measures the calibration of predictions in files: ``python -m analysis.reliability --help``."""

from __future__ import annotations

import argparse
import io
import re
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ..command import csv_file, finish, parser_of, shown, whole

__all__ = ["main"]

_EXAMPLES = """
examples:
  python -m analysis.reliability predictions.csv --group language
  python -m analysis.reliability answers.jsonl.gz --confidence p_top --correct judged
  python -m analysis.reliability scores.parquet --logits 'logit_*' --label gold --out results/scores.csv
  python -m analysis.reliability results/my__model/samples_*.jsonl     lm-evaluation-harness, run with --log_samples

A file has one prediction a row: its confidence and whether it was right (or what was predicted and the label); or
logits or probabilities of all options, as columns or as one list, and the label: the number of the right option from
0, its letter from A, or its name where the options are named. Multiple-choice samples of lm-evaluation-harness are
scored twice, by the log-likelihood of each option (as its acc) and per character (as its acc_norm).

Writes the scores (CSV, with a .json beside it that says what made them and lists every row that could not be used),
the bins of the reliability diagram (NAME_bins.csv) and the figure (NAME.png), and prints the scores in words.
"""
_COLUMNS = {
    "confidence": "the probability that the prediction is right",
    "correct": "whether it was right: 1 or 0, true or false",
    "predicted": "what was predicted, compared with the label where no column says what was right",
    "label": "the right option",
    "logits": "scores or log-probabilities of the options: one column of lists, or several columns or patterns",
    "probabilities": "probabilities of the options: one column of lists, or several columns or patterns",
}
_BRIEF = ["score", "group", "n", "accuracy", "confidence", "ece", "ece_if_calibrated", "temperature", "aurc"]
_SHOWN = 10  # bad rows on the terminal


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 2 for what cannot be measured."""
    about = (
        "How calibrated are the predictions in your files? Reliability diagram with intervals and noise\n"
        "floor, calibration errors, NLL, Brier score, best temperature and selective prediction."
    )
    parser = parser_of("analysis.reliability", about, _EXAMPLES)
    files = ".csv, .tsv, .jsonl, .json (also with .gz) or .parquet; all of one kind"
    parser.add_argument("files", nargs="+", metavar="FILE", help=files)
    for role, what in _COLUMNS.items():
        several = "+" if role in ("logits", "probabilities") else 1
        text = f"column that holds {what} (default: guessed and said)"
        parser.add_argument(f"--{role}", nargs=several, metavar="COLUMN", help=text)
    text = "measure each value of this column too; 'file' takes each file (default: none; of samples each task)"
    parser.add_argument("--group", metavar="COLUMN", help=text)
    parser.add_argument("--bins", type=whole(1), default=15, metavar="N", help="bins of equal width (default: 15)")
    text, out = "table of scores to write (default: reliability.csv)", Path("reliability.csv")
    parser.add_argument("--out", type=csv_file, default=out, metavar="FILE.csv", help=text)
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(words)
    command = shlex.join(Path(word).name if "/" in word else word for word in words)  # no folders of this machine
    return finish(lambda: _translated(options, f"python -m analysis.reliability {command}"))


def _translated(options: argparse.Namespace, command: str) -> int:
    """Measure; an error that names an argument of a function names the option instead."""
    try:
        return _measure(options, command)
    except ValueError as error:
        text = re.sub(
            "^files must", "FILE must", str(error).replace("unless group is 'file'", "unless --group is file")
        )
        raise ValueError(re.sub("^([a-z]+) must (name|have at most|be logits)", r"--\1 must \2", text)) from error


def _measure(options: argparse.Namespace, command: str) -> int:
    from ..lab.files import check_writable
    from ..lab.provenance import made_here
    from ..lab.tables import sidecar_of, write_table
    from ._files import check_files

    bins, picture = options.out.with_name(f"{options.out.stem}_bins.csv"), options.out.with_suffix(".png")
    outputs = (options.out, sidecar_of(options.out), bins, picture)
    for path in check_files(options.files):
        if path.resolve() in {output.resolve() for output in outputs}:
            raise ValueError(f"--out must not overwrite what is read, got {options.out} and FILE {path}.")
    check_writable(*outputs)
    start = time.perf_counter()
    from matplotlib.figure import Figure

    from ._measure import POOLED, describe, measure_predictions
    from ._panels import draw_predictions
    from ._read import read_predictions

    columns = {role: getattr(options, role) for role in _COLUMNS}
    read = read_predictions(options.files, group=options.group, **columns)
    print(*read.said, sep="\n")
    print(f"left out: {len(read.left_out)} of {read.rows} rows")
    for bad in read.left_out[:_SHOWN]:
        print(f"  {bad.file}, line {bad.line}: {bad.problem}")
    if len(read.left_out) > _SHOWN:
        print(f"  and {len(read.left_out) - _SHOWN} more, all in {shown(outputs[1])}")
    found = measure_predictions(read.predictions, n_bins=options.bins)
    figure, drawn = Figure(layout="constrained"), io.BytesIO()
    draw_predictions(read.predictions, found, figure)
    figure.savefig(drawn, format="png", dpi=150, metadata={"Software": None})
    config = {"files": [Path(name).name for name in options.files], "bins": options.bins, "group": options.group}
    seconds = round(time.perf_counter() - start, 3)
    made = made_here(command, config={**config, **columns}, seeds=[0], wall_seconds=seconds)  # seeds of the resamples
    said = [line.removeprefix(f"{Path(name).parent}/") for name, line in zip(options.files, read.said, strict=True)]
    made |= {
        "read": said,
        "rows": read.rows,
        "left_out": [{**bad._asdict(), "file": Path(bad.file).name} for bad in read.left_out],
    }
    beside = {bins: found.bins.to_csv(index=False, float_format="%.7g"), picture: drawn.getvalue()}
    write_table(found.scores, options.out, made, digits=7, beside=beside)
    for line in found.scores[found.scores["group"] == POOLED].itertuples():
        print(describe(line))
    if found.scores["group"].nunique() > 1:
        print(found.scores[_BRIEF].round(3).to_string(index=False))
    print(f"wrote {', '.join(map(shown, outputs))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
