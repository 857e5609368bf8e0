"""One name, one class: over both packages, private classes included."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_no_two_classes_have_one_name():
    places = defaultdict(list)
    for path in sorted(p for package in ("analysis", "kernel") for p in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                places[node.name.lstrip("_")].append(path.relative_to(ROOT).as_posix())
    assert {"HeadStatistics", "FusedLoss", "EagerLoss"} <= set(places), "nothing was collected"
    assert {name: found for name, found in places.items() if len(found) > 1} == {}
