"""Facts from data packages: countries, elements, units, languages, currencies and Python's own documentation."""

from __future__ import annotations

import ast
import re
import sys
import sysconfig
from collections.abc import Callable, Iterator
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, NamedTuple

from ...checks import pip_install

__all__ = ["SOURCES", "Fact", "facts", "ordinary_text", "source_table"]


class Fact(NamedTuple):
    """A question with one short answer; facts of one ``key`` say the same thing and must share a split."""

    kind: str
    source: str
    question: str
    answer: str
    key: str


# Distribution -> licence as its maintainers state it; the version is read when questions are built.
SOURCES = {
    "pycountry": "LGPL-2.1-only",
    "countryinfo": "MIT",
    "periodictable": "public domain",
    "Pint": "BSD-3-Clause",
    "python": "PSF-2.0",
}
# Quantity -> a unit of it, to compare dimensions with.
_QUANTITIES = {
    "length": "meter",
    "mass": "gram",
    "time": "second",
    "electric current": "ampere",
    "temperature": "kelvin",
    "area": "meter**2",
    "volume": "meter**3",
    "speed": "meter/second",
    "frequency": "hertz",
    "force": "newton",
    "energy": "joule",
    "power": "watt",
    "pressure": "pascal",
    "electric charge": "coulomb",
    "voltage": "volt",
    "electric resistance": "ohm",
    "capacitance": "farad",
    "magnetic flux density": "tesla",
    "luminous intensity": "candela",
    "dynamic viscosity": "pascal*second",
    "amount of substance": "mole",
    "information": "bit",
}
_MOST_SUBDIVISIONS = 900  # of 5,000: else they would be the study
_LONGEST_ANSWER = 40  # characters


def _module(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(f"building questions needs {name}: {pip_install('instruction')}") from error


def _countries() -> Iterator[Fact]:
    info, codes = _module("countryinfo"), _module("pycountry")
    for country in sorted(info.all_countries(), key=lambda c: str(c.name())):
        name = str(country.name()).title() if str(country.name()).islower() else str(country.name())
        asked: dict[str, tuple[str, Any]] = {
            "capital": (f"What is the capital of {name}?", country.capital()),
            "subregion": (f"In which part of the world is {name}?", country.subregion()),
            "demonym": (f"What is a person from {name} called?", country.demonym()),
            "calling code": (
                f"What is the international calling code of {name}?",
                _first(country.calling_codes(), "+"),
            ),
            "domain": (f"What is the internet top-level domain of {name}?", _first(country.tld())),
            "language": (f"Which language is official in {name}?", _language(codes, _first(country.languages()))),
            "money": (f"Which currency is used in {name}?", _currency(codes, _first(country.currencies()))),
        }
        for kind, (question, answer) in asked.items():
            if answer:
                yield Fact(kind, "countryinfo", question, str(answer), f"{kind}:{name}")


def _first(values: Any, prefix: str = "") -> str | None:
    return f"{prefix}{values[0]}" if values and values[0] else None


def _language(codes: Any, code: str | None) -> str | None:
    found = codes.languages.get(alpha_2=code) if code else None
    return None if found is None else re.sub(r" \(.*", "", found.name)


def _currency(codes: Any, code: str | None) -> str | None:
    found = codes.currencies.get(alpha_3=code) if code else None
    return None if found is None else found.name


def _codes() -> Iterator[Fact]:
    codes, source = _module("pycountry"), "pycountry"
    for c in codes.countries:
        yield Fact(
            "country code", source, f"What is the two-letter ISO code of {c.name}?", c.alpha_2, f"iso2:{c.alpha_2}"
        )
    for c in codes.currencies:
        yield Fact(
            "currency code", source, f"What is the ISO code of the currency {c.name}?", c.alpha_3, f"money:{c.name}"
        )
        yield Fact("currency name", source, f"Which currency has the ISO code {c.alpha_3}?", c.name, f"money:{c.name}")
    for c in codes.languages:
        if hasattr(c, "alpha_2"):
            question = f"Which language has the ISO 639 code {c.alpha_3}?"
            yield Fact("language code", source, question, re.sub(r" \(.*", "", c.name), f"language:{c.alpha_3}")
    for c in codes.scripts:
        yield Fact(
            "script",
            source,
            f"Which script has the ISO 15924 code {c.alpha_4}?",
            re.sub(r" \(.*", "", c.name),
            f"script:{c.alpha_4}",
        )
    divisions = [c for c in codes.subdivisions if c.parent_code is None and c.country is not None]
    divisions.sort(key=lambda c: c.code)
    for c in divisions[:: -(-len(divisions) // _MOST_SUBDIVISIONS)]:
        question = f"In which country is the {c.type.lower()} of {c.name}?"
        yield Fact("subdivision", source, question, c.country.name, f"subdivision:{c.code}")


def _elements() -> Iterator[Fact]:
    source = "periodictable"
    for e in _module(source).elements:
        if e.number < 1:
            continue
        yield Fact(
            "element symbol", source, f"What is the chemical symbol of {e.name}?", e.symbol, f"symbol:{e.symbol}"
        )
        yield Fact(
            "element of symbol", source, f"Which element has the symbol {e.symbol}?", e.name, f"symbol:{e.symbol}"
        )
        yield Fact(
            "atomic number", source, f"What is the atomic number of {e.name}?", str(e.number), f"number:{e.number}"
        )
        yield Fact(
            "element of number",
            source,
            f"Which element has the atomic number {e.number}?",
            e.name,
            f"number:{e.number}",
        )


def _units() -> Iterator[Fact]:
    registry = _module("pint").UnitRegistry()
    quantities = {registry.get_dimensionality(unit): name for name, unit in _QUANTITIES.items()}
    seen = set()
    for name in sorted(registry._units):
        if not re.fullmatch(r"[a-z]{3,}(_[a-z]{2,})*", name) or name.startswith("delta_"):
            continue
        unit = str(registry.Unit(name))
        quantity = quantities.get(registry.get_dimensionality(name))
        if quantity is None or unit in seen or unit != name:  # plurals and other names of the same unit
            continue
        seen.add(unit)
        question = f"Which physical quantity is measured in the unit {name.replace('_', ' ')}?"
        yield Fact("unit", "Pint", question, quantity, f"unit:{unit}")


def _python() -> Iterator[Fact]:
    library = Path(sysconfig.get_paths()["stdlib"])
    for name in sorted(sys.stdlib_module_names):
        path = next((p for p in (library / f"{name}.py", library / name / "__init__.py") if p.exists()), None)
        if path is None or name.startswith("_") or name in ("this", "antigravity"):
            continue
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8", errors="replace")))
        line = _summary(text)
        if line and name not in line.lower():
            question = f'Which module of Python\'s standard library is described as "{line}"?'
            yield Fact("python module", "python", question, name, f"module:{name}")
    for kind in (str, bytes, list, dict, set, int, float):
        for name in sorted(vars(kind)):
            line = _summary(getattr(getattr(kind, name), "__doc__", None))
            if line and not name.startswith("_") and name not in line.lower():
                question = f'Which method of Python\'s {kind.__name__} does this: "{line}"?'
                # str and bytes, list and dict share methods and their descriptions
                yield Fact("python method", "python", question, name, f"method:{name}")


def _summary(text: str | None) -> str | None:
    line = (text or "").strip().split("\n\n")[0].replace("\n", " ").strip().rstrip(".")
    return line if 15 < len(line) < 160 and "->" not in line else None


_MAKERS: tuple[Callable[[], Iterator[Fact]], ...] = (_countries, _codes, _elements, _units, _python)


def facts() -> list[Fact]:
    """All facts, in a fixed order, each question once, with answers of at most 40 characters.

    Raises:
        ImportError: If a data package is missing.
    """
    found: dict[str, Fact] = {}
    for make in _MAKERS:
        for fact in make():
            if 0 < len(fact.answer) <= _LONGEST_ANSWER:
                found.setdefault(fact.question, fact)
    return list(found.values())


def ordinary_text(characters: int = 1600) -> list[str]:
    """Beginnings of Python's own documentation topics, one document each, cut at the end of a paragraph."""
    topics = import_module("pydoc_data.topics").topics
    documents = []
    for name in sorted(topics):
        text = topics[name].strip()
        cut = text[:characters].rfind("\n\n") if len(text) > characters else len(text)
        documents.append(text[: cut if cut > 0 else characters])
    return [text for text in documents if len(text) > 200]


def source_table() -> dict[str, dict[str, str]]:
    """Version and licence of every source, for the record."""
    return {
        name: {
            "version": sys.version.split()[0] if name == "python" else metadata.version(name),
            "licence": licence,
        }
        for name, licence in SOURCES.items()
    }
