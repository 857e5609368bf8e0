"""Command line of the tuning study: ``python -m analysis.instruction --help``."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from .claims.judging import judge_model
from .claims.verdicts import judge_table
from .command import above_zero, csv_file, finish, output_folder, parser_of, shown, whole
from .lab.files import check_writable
from .lab.provenance import made_of_rows
from .lab.records import RowStore
from .lab.registry import tidy
from .lab.sweep import read_rows
from .lab.tables import write_table
from .study.real_tuning.grid_command import print_plan, print_status, processes, run_grid, shard
from .study.real_tuning.predictions import PREDICTIONS
from .study.real_tuning.questions import build_questions, read_questions, write_questions
from .study.real_tuning.tuning import PRESETS, InstructionConfig, configs, seconds, tune

__all__ = ["main"]

_EXAMPLES = """
examples:
  python -m analysis.instruction questions questions.json        build the questions from installed data packages
  python -m analysis.instruction plan MODEL.gguf questions.json  what `run` will cost
  python -m analysis.instruction run MODEL.gguf questions.json --device cuda --workers 5 --max-minutes 7
  CUDA_VISIBLE_DEVICES=1 python -m analysis.instruction run MODEL.gguf questions.json --device cuda --shard 2/2
  python -m analysis.instruction table MODEL.gguf questions.json   after all shards
  python -m analysis.instruction status MODEL.gguf questions.json
  python -m analysis.instruction verdicts TABLE.csv verdicts.csv   the claims of the study against the table

MODEL is a local folder of safetensors or a GGUF file; nothing is downloaded. Every run is a row on disk that is never
computed twice; `run` may be stopped and started at will, and writes its table beside a sidecar with seeds, versions and
the licences of the data.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 1 where a run failed or was left, 2 for a wrong call."""
    options = _parser().parse_args(arguments)
    return finish(lambda: _COMMANDS[options.command](options))


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(
        "analysis.instruction",
        "Tune a real language model on real questions with label smoothing, and measure its calibration.",
        _EXAMPLES,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    build = commands.add_parser("questions", help="build the questions and the text")
    build.add_argument("questions", type=Path, metavar="FILE", help="where to write them, as JSON")
    verdicts = commands.add_parser("verdicts", help="the claims of the study against a table of the preset full")
    verdicts.add_argument("table", type=Path, metavar="TABLE", help="CSV that run or table wrote")
    verdicts.add_argument("file", type=csv_file, metavar="FILE", help="CSV to write the verdicts to")
    out = output_folder() / "instruction"
    for name, text in (
        ("run", "compute missing rows, write the table"),
        ("table", "write the table of the rows that are there"),
        ("plan", "runs and cost"),
        ("status", "left"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("model", type=Path, metavar="MODEL", help="folder of safetensors or GGUF file")
        command.add_argument("questions", type=Path, metavar="FILE", help="JSON that questions wrote")
        command.add_argument("--preset", choices=PRESETS, default="full", help="which runs (default: full)")
        command.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
        command.add_argument("--workers", type=whole(1), metavar="N", help="processes (default: 1; 8 on cuda)")
        command.add_argument("--out", type=Path, default=out, metavar="DIR", help=f"default: {shown(out)}")
        if name == "run":
            command.add_argument("--max-minutes", type=above_zero, metavar="M", help="start no run after this time")
            command.add_argument("--shard", type=shard, metavar="I/N", help="part I of N (from 1), without the table")
    return parser


def _questions(options: argparse.Namespace) -> int:
    check_writable(options.questions)
    made = build_questions()
    write_questions(made, options.questions)
    for (split, choice), count in sorted(Counter((q.split, bool(q.options)) for q in made.questions).items()):
        print(f"{split:11}{'multiple choice' if choice else 'short answer':16}{count:>6}")
    for name, source in made.sources.items():
        print(f"{name} {source['version']} ({source['licence']})")
    print(f"wrote {options.questions}: {len(made.questions)} questions, {len(made.texts)} documents, {made.digest}")
    return 0


def _grid(options: argparse.Namespace) -> list[InstructionConfig]:
    return configs(options.model.name, read_questions(options.questions).digest, options.preset)


def _run(options: argparse.Namespace) -> int:
    if not options.model.exists():
        raise FileNotFoundError(f"MODEL must be a folder or a GGUF file, got {options.model}, which does not exist.")
    function = partial(tune, model=options.model, questions=options.questions, device=options.device)
    status = run_grid(function, _grid(options), options, RowStore(options.out / "rows"))
    if options.shard is None or options.shard[1] == 1:
        _table(options)
    return status


def _table(options: argparse.Namespace) -> int:
    grid, rows = _grid(options), options.out / "rows"
    found = read_rows(rows, grid)
    if not found.empty:
        path = options.out / f"instruction_{options.preset}.csv"
        table = tidy(found).drop(columns=["model", "questions"])  # one of each: in the sidecar
        command = f"python -m analysis.instruction run {options.model.name} {options.questions.name}"
        made = made_of_rows(f"{command} --preset {options.preset} --device {options.device}", RowStore(rows), grid)
        write_table(table, path, {**made, "source": _sources(options)})
        print(f"wrote {shown(path)}")
    return int(len(found) < len(grid))


def _sources(options: argparse.Namespace) -> dict[str, Any]:
    """What was tuned and on what, for the sidecar."""
    known = read_questions(options.questions)
    quantised = " (dequantised from a quantised GGUF file)" if options.model.suffix == ".gguf" else ""
    return {
        "model": options.model.name + quantised,
        "questions": {"digest": known.digest, "count": len(known.questions), "sources": known.sources},
    }


def _plan(options: argparse.Namespace) -> int:
    each = [seconds(config, options.device) for config in _grid(options)]
    return print_plan(each, options.device, processes(options))


def _status(options: argparse.Namespace) -> int:
    return print_status(_grid(options), RowStore(options.out / "rows"))


def _verdicts(options: argparse.Namespace) -> int:
    judge = partial(judge_model, predictions=PREDICTIONS)
    return judge_table(
        judge, options.table, options.file, "python -m analysis.instruction verdicts", {"preset": "full"}
    )


_COMMANDS = {
    "questions": _questions,
    "run": _run,
    "table": _table,
    "plan": _plan,
    "status": _status,
    "verdicts": _verdicts,
}

if __name__ == "__main__":
    sys.exit(main())
