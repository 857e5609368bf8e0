"""Write the tables of README and docs anew from the committed ones, and hold numbers in prose to one form.

Run as ``python docs/readme_tables.py``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path[:0] = [str(folder) for folder in (Path(__file__).resolve().parent.parent, Path(__file__).resolve().parent)]
import audit_tables as audits  # paper_figures is no part of the installed package, and docs no package
import kernel_byte_codes
import kernel_checks
import kernel_frontier
import kernel_knob
import kernel_models
import kernel_parallel
import kernel_power
import kernel_profile
import kernel_scale
import kernel_tables as kernels
import kernel_targets
import kernel_uses
import notes_tables as notes
import readme_sentences as front
import real_tables as real
import scratch_tables as scratch
import sparse_floor
import sparse_tables
import study_tables as studies
from table_text import DATA, ROOT, numbers_in_full

__all__ = ["PAGES", "PARTS", "main", "render"]

PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))

PARTS: dict[str, Callable[[Path], str]] = {
    "answer": audits.answer,
    "caption": front.caption,
    "readme figure": front.figure,
    "found": front.found,
    "verdicts": studies.verdicts,
    "figures": studies.figures,
    "kernel": kernels.kernel,
    "kernel knob": kernel_knob.knob,
    "kernel frontier": kernel_frontier.frontier,
    "kernel targets": kernel_targets.kernel_targets,
    "kernel floors": kernels.kernel_floors,
    "kernel power": kernel_power.kernel_power,
    "kernel profile": kernel_profile.kernel_profile,
    "kernel host": kernels.kernel_host,
    "sparse": sparse_tables.sparse,
    "sparse floor": sparse_floor.floor,
    "statistics": kernel_uses.statistics,
    "byte codes": kernel_byte_codes.byte_codes,
    "gpu checks": kernel_checks.checks,
    "cpu": kernel_uses.cpu,
    "parallel": kernel_parallel.parallel,
    "scale": kernel_scale.scale,
    "models": kernel_models.models,
    "training step": kernel_uses.training_step,
    "thresholds": studies.thresholds,
    "audit": audits.audit,
    "full cost": notes.cost,
    "temperature": notes.temperature,
    "uncapped": notes.uncapped,
    "rivals": notes.rivals,
    "law": notes.law,
    "recommendation": audits.recommendation,
    "shared changes": real.shared_changes,
    "real models": real.models,
    "real found": real.found,
    "real verdicts": real.verdicts,
    "real vocabulary": real.vocabulary,
    "real predictions": real.predicted,
    "transformers": scratch.transformers,
    "transformers registered": scratch.registered,
}


def render(text: str, data: Path = DATA) -> str:
    """A page with every part that it marks written anew, between ``<!-- NAME -->`` and ``<!-- end of NAME -->``.

    Numbers in its prose get the digit in front of their point (:func:`table_text.numbers_in_full`).

    Raises:
        ValueError: If a mark has no end.
    """
    for name, part in PARTS.items():
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        if begin in text:
            before, _, rest = text.partition(begin)
            _, found, after = rest.partition(end)
            if not found:
                raise ValueError(f"{begin} must be followed by {end}.")
            text = f"{before}{begin}\n{part(data)}\n{end}{after}"
    return numbers_in_full(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write; returns the exit status: 1 where ``--check`` finds a difference."""
    parser = argparse.ArgumentParser(
        prog="python docs/readme_tables.py",
        description="Write tables, and the numbers beside them, anew from paper_figures/data/ into README and docs.",
        epilog="examples:\n  python docs/readme_tables.py\n  python docs/readme_tables.py --check   change nothing",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--check", action="store_true", help="only say which pages are not up to date")
    check, status = parser.parse_args(arguments).check, 0
    for path in PAGES:
        before = path.read_text(encoding="utf-8")
        after = render(before)
        if after != before:
            status = max(status, int(check))
            print(f"{path.relative_to(ROOT)} {'is not up to date' if check else 'written'}")
            if not check:
                path.write_text(after, encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main())
