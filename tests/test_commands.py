"""Every command explains itself, and the map of the packages names all there is."""

from __future__ import annotations

import argparse
import re
from importlib import import_module, metadata
from pathlib import Path

import numpy
import pytest

import analysis
from analysis import _COMMANDS, _MACHINERY, _PUBLIC
from analysis.__main__ import commands, main, modules, summary, versions
from analysis.lab.provenance import environment

COMMANDS = list(commands())


@pytest.mark.parametrize(("name", "path"), COMMANDS, ids=[name for name, _ in COMMANDS])
def test_help_names_the_command_and_gives_examples(name, path, capsys):
    entry = import_module(f"{name}.__main__" if path.name == "__main__.py" else name)
    with pytest.raises(SystemExit) as end:
        entry.main(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: python -m {name} ")
    assert len(re.findall(rf"^  python -m {name}\b", text.partition("examples:")[2], re.MULTILINE)) >= 1


@pytest.mark.parametrize(("name", "path"), COMMANDS, ids=[name for name, _ in COMMANDS])
def test_every_option_says_what_it_is(name, path, monkeypatch, capsys):
    """Of the parser that the command makes, and of the parsers of its subcommands."""
    made: list[argparse.ArgumentParser] = []
    begin = argparse.ArgumentParser.__init__

    def keep(parser, *given, **named):
        begin(parser, *given, **named)
        made.append(parser)

    monkeypatch.setattr(argparse.ArgumentParser, "__init__", keep)
    entry = import_module(f"{name}.__main__" if path.name == "__main__.py" else name)
    with pytest.raises(SystemExit):
        entry.main(["--help"])
    assert f"usage: {made[0].prog} " in capsys.readouterr().out
    silent = []
    for parser in made:
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                listed = {choice.dest for choice in action._choices_actions if choice.help}
                silent += [f"{parser.prog} {command}" for command in action.choices if command not in listed]
            elif not action.help:
                silent.append(f"{parser.prog} {action.option_strings or action.dest}")
    assert silent == []


def test_every_file_that_reads_arguments_is_a_command():
    root = Path(__file__).resolve().parent.parent
    readers = {
        path
        for package in ("analysis", "kernel", "paper_figures")
        for path in (root / package).rglob("*.py")
        if re.search(r"ArgumentParser\(|parser_of\(", path.read_text(encoding="utf-8"))
    }
    assert len(readers) >= 8
    shared = {  # what commands call
        *(root / "analysis" / name for name in ("command.py", "lab/computed.py")),
        root / "kernel" / "benchmark" / "command.py",
    }
    assert readers - shared <= {path for _, path in commands()}


def test_the_map_names_every_module_and_command_with_its_line(capsys):
    assert main([]) == 0
    lines = dict(line.strip().split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line.strip())
    assert set(_PUBLIC) | set(_MACHINERY) <= set(lines)
    assert {name for name, _ in commands()} <= set(lines)
    assert {f"analysis.{name}" for name in _COMMANDS} <= {name for name, _ in commands()}
    assert lines["caps"] == "Upper bounds on the confidence of a softmax head, and what such a head attains."


def test_the_versions_are_those_of_the_libraries(capsys):
    assert main(["--versions"]) == 0
    text = capsys.readouterr().out
    assert f" {numpy.__version__}\n" in text
    assert re.search(rf"^  confidence-ceiling +{re.escape(analysis.__version__)}$", text, re.MULTILINE)
    assert "CUDA device" in text
    assert "caps" not in text


def test_the_version_is_that_of_the_source_and_not_of_old_metadata(monkeypatch):
    """An editable install keeps the metadata of the day on which it was made."""
    told = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "0.0.1" if "ceiling" in name else told(name))
    assert versions()["confidence-ceiling"] == environment()["confidence_ceiling"] == analysis.__version__


def test_every_public_module_has_a_line_of_its_own():
    lines = {name: summary(path) for package in ("analysis", "kernel") for name, path in modules(package)}
    assert len(lines) > 50
    assert [name for name, line in lines.items() if not line or "``" in line or ":func:" in line] == []
    assert len(set(lines.values())) == len(lines)
