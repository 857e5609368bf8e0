"""Run the study and judge the claims: ``python -m analysis.study --help``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..command import above_zero, csv_file, finish, output_folder, parser_of, shown, whole
from ..lab.registry import EXPERIMENTS, PRESETS, experiments

__all__ = ["main"]

_EXAMPLES = """
examples:
  python -m analysis.study list                         what there is, and what was predicted
  python -m analysis.study plan all --preset full       what it will cost, and how that is estimated
  python -m analysis.study run S3 --preset quick        a few minutes on two cores; stop and start at will
  python -m analysis.study run all --preset full --device cuda --workers 14 --max-minutes 9
  python -m analysis.study status all --preset full     done, failed, left
  python -m analysis.study pack rows.jsonl.gz           all finished rows as one file ...
  python -m analysis.study unpack rows.jsonl.gz         ... and back into the folder of another machine
  python -m analysis.study sources                      where every committed table comes from, and what reads it
  python -m analysis.study verdicts                     claims K1 to K9 against committed tables, as in docs/study.md
  python -m analysis.study verdicts --preset quick --out DIR     ... against the tables that a run left in DIR

Rows are kept one file each under OUT/rows and named by their config: nothing is computed twice, nothing finished is
lost; several runs may share OUT, each taking what no other computes. Tables are written to OUT beside a sidecar that
says where they come from. Committed tables are written by name alone: tables --to DIR, verdicts --file FILE.
"""


_OVERLAP = 4  # fits that one GPU serves at once without slowing each other, as launches bound them


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 1 where a config failed or was left, 2 for a wrong call."""
    options = _parser().parse_args(arguments)
    return finish(lambda: _COMMANDS[options.command](options))


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(
        "analysis.study",
        "Experiments S1 to S7 and S9 to S12: every claim and the law tested by simulation, with a verdict.",
        _EXAMPLES,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    helps = {
        "run": "compute missing rows and write the tables",
        "plan": "configs and estimated cost",
        "list": "experiments and predictions",
        "status": "done, failed, left",
        "pack": "finished rows into one file",
        "unpack": "rows of such a file into OUT",
        "tables": "write the tables of the finished rows",
        "sources": "every committed table: the command and the commit that made it, and what reads it",
        "verdicts": "claims against the committed tables, or those of OUT; printed, and written where --file says",
    }
    for name, text in helps.items():
        command = commands.add_parser(name, help=text, description=text.capitalize() + ".")
        if name in ("run", "plan", "list", "status", "tables"):
            command.add_argument(
                "names",
                nargs="*",
                default=["all"],
                metavar="S1..S12|all",
                type=_name,
                help="experiments (default: all)",
            )
        if name in ("pack", "unpack"):
            command.add_argument("file", type=Path, metavar="FILE", help="where the rows are kept, .xz or .gz")
        if name not in ("list", "sources"):
            preset = "full" if name == "verdicts" else "quick"
            command.add_argument("--preset", choices=PRESETS, default=preset, help=f"which grid (default: {preset})")
        if name not in ("list", "plan", "sources"):
            where = "the committed tables" if name == "verdicts" else f"{shown(output_folder())}/PRESET"
            command.add_argument("--out", type=Path, metavar="DIR", help=f"default: {where}")
        if name in ("run", "plan"):
            command.add_argument(
                "--device", default="cpu", help="cpu, or cuda: larger fits on visible GPUs (default: cpu)"
            )
            command.add_argument("--workers", type=whole(1), metavar="N", help="processes (default: one a core)")
            command.add_argument(
                "--gpu-workers", type=whole(1), metavar="N", default=6, help="of these on each GPU (default: 6)"
            )
        if name == "run":
            command.add_argument("--engine", choices=("local", "ray"), default="local", help="default: local")
            command.add_argument("--address", metavar="A", help="of a Ray cluster (default: start one here)")
            command.add_argument("--max-minutes", type=above_zero, metavar="M", help="start no fit after this time")
            command.add_argument(
                "--longest-fit",
                type=above_zero,
                default=float("inf"),
                metavar="SECONDS",
                help="leave out fits that are estimated to take longer (default: none)",
            )
        if name == "pack":
            command.add_argument("--digits", type=whole(1), metavar="N", help="of measured numbers (default: all)")
        if name == "tables":
            command.add_argument("--to", type=Path, metavar="DIR", help="where to (default: OUT)")
        if name == "verdicts":
            command.add_argument("--file", type=csv_file, help="CSV to write the verdicts to (default: none)")
    return parser


def _name(text: str) -> str:
    if text != "all" and text not in EXPERIMENTS:
        raise argparse.ArgumentTypeError(f"must be all or one of {', '.join(EXPERIMENTS)}, got {text!r}")
    return text


def _out(options: argparse.Namespace) -> Path:
    return options.out or output_folder() / options.preset


def _run(options: argparse.Namespace) -> int:
    from ..lab.running import progress, simulate_all, table_path

    engine = None
    if options.engine == "ray":
        from ..lab.ray_engine import connect

        engine = connect(options.address)
    out, studies = _out(options), experiments(options.names)
    result = simulate_all(
        studies,
        options.preset,
        out,
        device=options.device,
        workers=options.workers,
        gpu_workers=options.gpu_workers,
        max_seconds=None if options.max_minutes is None else 60 * options.max_minutes,
        longest_fit=options.longest_fit,
        engine=engine,
    )
    print(f"{result.computed} computed now, {len(result.failures)} failed")
    for name, error in result.failures.items():
        print(f"failed {name}: {error.strip().splitlines()[-1]}", file=sys.stderr)
    if result.failures:
        print(f"whole errors: {shown(out)}/rows/S*/failed/KEY.json", file=sys.stderr)
    if result.elsewhere:
        print(f"{result.elsewhere} rows are left to another run in {shown(out)}; it writes the whole tables")
    missing = 0
    for study in studies:
        count = progress(study, options.preset, out)
        missing += count.configs - count.done
        wrote = f", wrote {shown(table_path(out, study.name))}" if count.done else ""
        print(f"{study.name}: {count.done} of {count.configs} there{wrote}", flush=True)
    return int(missing > 0)


def _plan(options: argparse.Namespace) -> int:
    from ..lab.placement import where
    from ..lab.workers import available_cores

    workers, total = options.workers or available_cores(), 0.0
    print(f"{'':4}{'configs':>8}{'CPU-core s':>12}{'GPU s':>9}{'longest s':>11}{'wall min':>10}")
    for study in experiments(options.names):
        cpu = gpu = longest = 0.0
        configs = study.configs(options.preset)
        for config in configs:
            place = where(study, config, options.device)
            seconds = study.seconds(config, place)
            cpu, gpu = (cpu + seconds, gpu) if place == "cpu" else (cpu, gpu + seconds)
            longest = max(longest, seconds)
        wall = max((cpu + gpu) / workers, gpu / _OVERLAP, longest)
        total += wall
        print(f"{study.name:4}{len(configs):>8}{cpu:>12.0f}{gpu:>9.0f}{longest:>11.0f}{wall / 60:>10.1f}")
    print(f"about {total / 60:.1f} minutes with {workers} workers on {options.device}")
    print(
        "estimated from sizes: iterations x (overhead + operations / rate + memory traffic), with constants from timed "
        f"CPU runs and, for a GPU, from its specification; at most {_OVERLAP} fits are counted as sharing a GPU; right "
        "to a factor of about 2"
    )
    return 0


def _list(options: argparse.Namespace) -> int:
    for study in experiments(options.names):
        print(f"{study.name}  {study.title}")
        for prediction in study.predictions:
            print(f"    {prediction.claim} {prediction.verdict}: {prediction.statement}")
    return 0


def _status(options: argparse.Namespace) -> int:
    from ..lab.running import progress

    left = 0
    print(f"{'':4}{'done':>7}{'failed':>8}{'left':>7}")
    for study in experiments(options.names):
        count = progress(study, options.preset, _out(options))
        print(f"{study.name:4}{count.done:>7}{count.failed:>8}{count.left:>7}")
        left += count.failed + count.left
    return int(left > 0)


def _pack(options: argparse.Namespace) -> int:
    from ..lab.bundles import pack

    print(f"{pack(_out(options), options.file, digits=options.digits)} rows -> {options.file}")
    return 0


def _unpack(options: argparse.Namespace) -> int:
    from ..lab.bundles import unpack

    added, known = unpack(_out(options), options.file)
    print(f"{added} rows added to {shown(_out(options))}, {known} were there")
    return 0


def _tables(options: argparse.Namespace) -> int:
    from ..lab.running import publish

    out, missing, studies = _out(options), 0, experiments(options.names)
    for study in studies:
        path = publish(study, options.preset, out, options.to or out)
        missing += path is None
        print(f"{study.name}: " + (f"wrote {shown(path)}, {path.stat().st_size} bytes" if path else "no complete cell"))
    if missing == len(studies):
        raise FileNotFoundError(f"there is no complete cell of preset {options.preset} under {shown(out)}/rows.")
    return int(missing > 0)


def _sources(options: argparse.Namespace) -> int:
    from .sources import sources

    for source in sources():
        print(f"{source.file:26} {' '.join(c[:12] for c in source.commit) or '-':12} {source.command}")
        print(f"{'':26} read by {', '.join(source.readers) or 'nothing'}")
    return 0


def _verdicts(options: argparse.Namespace) -> int:
    from ..claims.verdicts import write_verdicts

    return write_verdicts(options.preset, options.out, options.file)


_COMMANDS = {
    "run": _run,
    "plan": _plan,
    "list": _list,
    "status": _status,
    "pack": _pack,
    "unpack": _unpack,
    "tables": _tables,
    "sources": _sources,
    "verdicts": _verdicts,
}

if __name__ == "__main__":
    sys.exit(main())
