"""When the kernel was last checked on a GPU, and what that found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
from table_text import wrapped

__all__ = ["checks"]


def checks(data: Path) -> str:
    """When the GPU tests and the sanitizer last ran, and what they said; nothing of what has no table."""
    said = []
    if (data / "gpu_tests.csv").exists():
        tests: Any = pd.read_csv(data / "gpu_tests.csv")
        kinds = ("passed", "failed", "skipped", "not_run")
        passed, failed, skipped, missing = (int(tests[kind].sum()) for kind in kinds)
        late = f", {missing} did not run" if missing else ""
        said.append(
            f"The tests that need a GPU last ran at commit `{_commit(data, 'gpu_tests')}`: {passed} passed, {failed} "
            f"failed, {skipped} were skipped{late} (`gpu_tests.csv`, made by `python -m kernel.benchmark.gpu_tests`)."
        )
    if (data / "sanitizer.csv").exists():
        runs: Any = pd.read_csv(data / "sanitizer.csv")
        planted, calls = runs[runs["case"] == "planted"], runs[runs["case"] != "planted"]
        seen = sorted(f"`{tool}`" for tool in planted[planted["errors"] > 0]["tool"])
        clean, others = [], []
        for tool, of_tool in sorted(calls.groupby("tool")):
            cut, wrong = (of_tool[of]["case"].tolist() for of in (of_tool["errors"].isna(), of_tool["errors"] > 0))
            words = [f"finds errors in {', '.join(wrong)}"] if wrong else []
            words += [f"did not finish {', '.join(cut)}"] if cut else []
            others += [f"`{tool}` {' and '.join(words)}"] if words else []
            clean += [] if words else [f"`{tool}`"]
        found = [f"{_joined(clean)} {'find' if len(clean) > 1 else 'finds'} nothing"] if clean else []
        said.append(
            f"NVIDIA's compute-sanitizer last ran at commit `{_commit(data, 'sanitizer')}`, over "
            f"{calls['case'].nunique()} kinds of small calls that together run every kernel: "
            f"{'; '.join([*found, *others])} (`sanitizer.csv`, made by `python -m kernel.benchmark.sanitize`). "
            f"A call that reads and writes beyond the end of its tensors on purpose is found by "
            f"{_joined(seen) or 'none of them'}; `memcheck` is the only one that can see it."
        )
        if "initcheck" not in set(runs["tool"]):
            said.append(
                "`initcheck` is left out: entries of ignored tokens and padding are never written, and are moved with "
                "the others; that loss and gradients do not depend on them is tested with new tensors full of NaN."
            )
    return wrapped(" ".join(said)) if said else ""


def _joined(names: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def _commit(data: Path, table: str) -> str:
    return str(json.loads((data / f"{table}.json").read_text(encoding="utf-8"))["commit"])[:12]
