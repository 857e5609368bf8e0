"""Command that tunes a real model on pairs and asks it questions: ``python -m analysis.real_tuning --help``."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from .claims.pairs import judge_pairs
from .claims.verdicts import judge_table
from .command import above_zero, csv_file, finish, output_folder, parser_of, shown, whole
from .lab.provenance import made_of_rows
from .lab.registry import tidy
from .lab.sweep import read_rows
from .lab.tables import shortened, write_table
from .study.real_tuning.grid_command import print_plan, print_status, processes, run_grid, shard
from .study.real_tuning.pair_configs import TIERS, PairConfig, configs, seconds
from .study.real_tuning.pair_tables import essential, pair_rows
from .study.real_tuning.predictions import PAIR_PREDICTIONS
from .study.real_tuning.token_commands import encoded, model_file, run_check, run_encode
from .study.real_tuning.token_files import TokenFile, read_tokens, write_tokens

__all__ = ["main"]

_EXAMPLES = """
examples:
  python -m analysis.real_tuning smoke                        that everything works: Gemma cut to few tokens, a CPU
  python -m analysis.real_tuning encode gemma tokens.npz --questions mmlu.jsonl.gz arc.jsonl --tuning pairs.jsonl.gz
  python -m analysis.real_tuning check gemma tokens.npz --device cuda        is it the model that was encoded for?
  python -m analysis.real_tuning plan gemma tokens.npz --tier 1 --device cuda
  python -m analysis.real_tuning run gemma tokens.npz --tier 1 --device cuda --workers 5 --max-minutes 3
  python -m analysis.real_tuning table gemma tokens.npz --tier 1             after all shards
  python -m analysis.real_tuning verdicts TABLE.csv verdicts.csv             the claims of the study against tier 1

MODEL is gemma (Gemma-3-270M from its package, extra gemma; its weights are under the Gemma terms of use), smollm2, a
folder of safetensors or a GGUF file. Questions are JSON lines of question, options and answer (an index), pairs of
instruction, response and input; docs/real_tuning.md says how to make such files. `encode` needs a tokenizer that cuts
text as the model's file says; all else needs the weights and TOKENS alone, and may run under another transformers.
Every run is a row on disk that is never computed twice; `run` may be stopped and started at will.
"""
_AT_ONCE = 5  # runs on one GPU: Gemma needs 12 to 18 GiB for each, as measured on an H200
_PACKED_FROM = 400_000  # bytes of a table in short


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 1 where a run failed or was left, 2 for a wrong call."""
    options = _parser().parse_args(arguments)
    return finish(lambda: _COMMANDS[options.command](options))


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(
        "analysis.real_tuning",
        "Tune a real language model on files of pairs with label smoothing, and ask it files of questions.",
        _EXAMPLES,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    out = output_folder() / "real_tuning"

    def add(name: str, text: str, *, tokens: bool = True) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text)
        if tokens:
            command.add_argument("model", metavar="MODEL", help="gemma, smollm2, a folder or a GGUF file")
            command.add_argument("tokens", type=Path, metavar="TOKENS", help="file of token ids (.npz)")
        else:
            command.add_argument("model", metavar="MODEL", nargs="?", default="gemma", help="default: gemma")
        return command

    made = add("encode", "cut files into the model's tokens")
    made.add_argument("--questions", type=Path, nargs="+", required=True, metavar="FILE", help="multiple choice")
    made.add_argument("--tuning", type=Path, nargs="+", required=True, metavar="FILE", help="pairs to tune on")
    made.add_argument("--text", default="python", metavar="FILE", help="ordinary text (default: python, Python's own)")
    made.add_argument("--max-length", type=whole(32), default=512, metavar="N", help="tokens (default: 512)")
    made.add_argument("--no-check", action="store_true", help="do not measure the model on the pieces to check it by")
    check = add("check", "compare the model's cross entropy with the one when it was encoded for")
    check.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    for name, text in (
        ("run", "compute missing rows, write the table"),
        ("table", "write the table of the rows that are there"),
        ("plan", "runs and cost"),
        ("status", "left"),
    ):
        command = add(name, text)
        command.add_argument("--tier", choices=TIERS, default="1", help="which runs (default: 1)")
        command.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
        command.add_argument("--workers", type=whole(1), metavar="N", help="processes (default: 1; 5 on cuda)")
        command.set_defaults(at_once=_AT_ONCE)
        command.add_argument("--out", type=Path, default=out, metavar="DIR", help=f"default: {shown(out)}")
        if name == "run":
            command.add_argument("--no-falls", action="store_true", help="solve for no predicted falls: half the time")
        if name == "table":
            command.add_argument(
                "--short", type=csv_file, metavar="FILE", help="write what figures and verdicts read too"
            )
        if name == "run":
            command.add_argument("--max-minutes", type=above_zero, metavar="M", help="start no run after this time")
            command.add_argument("--shard", type=shard, metavar="I/N", help="part I of N (from 1), without the table")
            command.add_argument("--checkpoints", type=Path, metavar="DIR", help="keep a state here, GBs each")
    verdicts = commands.add_parser("verdicts", help="the claims of the study against a table of tier 1")
    verdicts.add_argument("table", type=Path, metavar="TABLE", help="CSV that run or table wrote")
    verdicts.add_argument("file", type=csv_file, metavar="FILE", help="CSV to write the verdicts to")
    smoke = add("smoke", "two tunings of a few steps on questions of the project's own", tokens=False)
    smoke.add_argument("--out", type=Path, default=out / "smoke", metavar="DIR", help=f"default: {shown(out)}/smoke")
    return parser


def _grid(options: argparse.Namespace) -> tuple[TokenFile, list[PairConfig]]:
    known = read_tokens(options.tokens)
    return known, configs(known.facts["model"], known.digest, int(known.facts["vocab_size"]), options.tier)


def _run(options: argparse.Namespace) -> int:
    from .study.real_tuning.pair_tuning import tune_on_pairs

    known, grid = _grid(options)
    function = partial(
        tune_on_pairs,
        model=model_file(options.model),
        tokens=options.tokens,
        device=options.device,
        checkpoints=options.checkpoints,
        falls=not options.no_falls,
        shared=options.out / "shared",
    )
    status = run_grid(function, grid, options, pair_rows(options.out))
    if options.shard is None or options.shard[1] == 1:
        _write(options, known, grid)
    return status


def _table(options: argparse.Namespace) -> int:
    return _write(options, *_grid(options))


def _write(options: argparse.Namespace, known: TokenFile, grid: Sequence[PairConfig]) -> int:
    rows = pair_rows(options.out)
    found = read_rows(rows, grid)
    if not found.empty:
        name = Path(known.facts["model"]).stem.lower().replace(".", "_")
        path = options.out / f"real_tuning_{name}_{options.tier}.csv"
        files = f"{Path(options.model).name} {options.tokens.name}"
        command = f"python -m analysis.real_tuning run {files} --tier {options.tier}"
        made = made_of_rows(f"{command} --device {options.device}", rows, grid)
        source: dict[str, Any] = {**known.facts, "tokens": known.digest}
        table = tidy(found).drop(columns="tokens")
        write_table(table, path, {**made, "source": source})
        print(f"wrote {shown(path)}")
        if getattr(options, "short", None) is not None:
            lines, same = shortened(essential(table), digits=4)
            write_table(lines, options.short, {**made, "source": source}, constants=same, packed_from=_PACKED_FROM)
            print(f"wrote {shown(options.short)} in short")
    return int(len(found) < len(grid))


def _plan(options: argparse.Namespace) -> int:
    known, grid = _grid(options)
    vocab_size = int(known.facts["vocab_size"])
    each = [seconds(config, options.device, vocab_size, len(known.questions)) for config in grid]
    return print_plan(each, options.device, processes(options))


def _status(options: argparse.Namespace) -> int:
    return print_status(_grid(options)[1], pair_rows(options.out))


def _verdicts(options: argparse.Namespace) -> int:
    judge = partial(judge_pairs, predictions=PAIR_PREDICTIONS)
    return judge_table(judge, options.table, options.file, "python -m analysis.real_tuning verdicts", {"tier": "1"})


def _smoke(options: argparse.Namespace) -> int:
    from .study.real_tuning.sample import write_sample

    model = model_file(options.model)
    with tempfile.TemporaryDirectory() as folder:
        questions, pairs = write_sample(Path(folder))
        tokens = Path(folder) / "tokens.npz"
        texts = ["Ten is more than nine, and nine is more than eight.", "It was dark and late when the door shut."]
        write_tokens(encoded(model, [questions], [pairs], texts, "of the project's own", 128, False), tokens)
        run = argparse.Namespace(
            model=str(model), tokens=tokens, tier="smoke", device="cpu", workers=1, out=options.out, max_minutes=None,
            shard=None, checkpoints=None, no_falls=False,
        )  # fmt: skip
        return _run(run)


_COMMANDS = {
    "encode": run_encode,
    "check": run_check,
    "run": _run,
    "table": _table,
    "plan": _plan,
    "status": _status,
    "verdicts": _verdicts,
    "smoke": _smoke,
}

if __name__ == "__main__":
    sys.exit(main())
