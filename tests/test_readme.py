"""The README: its commands and code run, its first hour works, its tables and files are those of the repository."""

from __future__ import annotations

import inspect
import json
import re
import shlex
import subprocess
from collections.abc import Callable
from fnmatch import fnmatch
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.image
import pandas as pd
import pytest
import torch

from analysis.__main__ import commands, modules
from analysis.audit import audit_model
from analysis.lab.tables import find_table, read_table
from analysis.language_models import load_model
from paper_figures import FIGURES

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
REPRODUCE = (ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8")
SHELL = re.findall(r"```sh\n(.*?)```", README + REPRODUCE, re.DOTALL)
# Everything that README and its page on reproducing tell one to type: lines of shell blocks and inline code.
TYPED = {line.partition("#")[0].strip() for block in SHELL for line in block.splitlines()}
PROSE = re.sub(r"```.*?```", "", README + REPRODUCE, flags=re.DOTALL)
INLINE = (" ".join(code.split()) for code in re.findall(r"`([^`]+)`", PROSE))
TYPED |= {code.partition(" && ")[0] for code in INLINE if re.match(r"(make|python -m|jupyter) ", code)}


def block(text: str) -> str:
    """The one block of Python that holds ``text``."""
    (found,) = [code for code in BLOCKS if text in code]
    return found


def yours(code: str) -> str:
    """The block without the lines that stand in for what is the reader's own."""
    return "\n".join(line for line in code.splitlines() if "# yours" not in line)


def python_m(command: str, *more: str) -> Callable[[], int]:
    """``main`` of the module that the command names, with its arguments."""
    _, _, module, *arguments = shlex.split(command)
    path = dict(commands())[module]
    main = import_module(f"{module}.__main__" if path.name == "__main__.py" else module).main
    return lambda: main([*arguments, *more])


def table(header: str) -> list[list[str]]:
    """Body of the Markdown table whose header line starts with ``header``."""
    lines = iter(REPRODUCE.splitlines())
    assert any(line.startswith(header) for line in lines), f"no table {header!r}"
    next(lines)
    body = []
    for line in lines:
        if not line.startswith("|"):
            break
        body.append([cell.strip() for cell in line.strip("|").split("|")])
    return body


def test_length():
    """A stranger reads it in a few minutes: all that stands between spaces, outside of code, addresses and comments."""
    prose = re.sub(r"<!--.*?-->|```.*?```|`[^`]+`|\]\([^)]*\)|https?://\S+", " ", README, flags=re.DOTALL)
    assert len(README.splitlines()) <= 130
    assert len(prose.split()) <= 900
    assert len(re.findall(r"\d[\d.,]*", prose)) <= 60


# Commands that are cheap run as they stand, apart from where they write; of expensive ones what costs nothing.
CHEAP = {
    "python -m analysis": (),
    "python -m analysis.study list": (),
    "python -m analysis.study plan all --preset full --device cuda": (),
    "python -m analysis.study sources": (),
    "python -m analysis.study verdicts --file paper_figures/data/verdicts.csv": ("--file", "{tmp}/verdicts.csv"),
    "python -m analysis.study verdicts --preset quick --file paper_figures/data/quick/verdicts.csv": (
        *("--file", "{tmp}/verdicts.csv"),
    ),
    "python -m paper_figures --list": (),
    "python -m paper_figures --only response --preset full": ("--out", "{tmp}"),
}
EXPENSIVE = (
    "python -m analysis.study run ",
    "python -m analysis.audit ",
    "python -m analysis.reliability ",
    "python -m kernel.benchmark",
)
MAKE = {  # target -> what it runs
    "make figures": "python -m paper_figures --preset quick --simulate",
    "make test": "python -m pytest -n 2",
    "make install": None,
    "make docs": "python -m sphinx --builder html --fail-on-warning",
    "make PYTHON=python3.12 ...": None,
    "make CONSTRAINTS= ...": None,  # these three: tests/test_makefile.py
}
PATTERNS = {"python -m paper_figures --only NAME": "python -m paper_figures --only {}"}
OTHER = {"jupyter lab notebooks/", "python -m analysis.study verdicts"}  # the latter with --file above
KEPT = (  # tests/analysis: test_study_command.py, test_real_tuning.py
    "python -m analysis.study unpack ",
    "python -m analysis.study tables ",
    "python -m analysis.real_tuning table ",
)


def test_every_command_of_the_readme_is_tested_below():
    assert len(TYPED) >= 12
    left = sorted(TYPED - {*CHEAP, *MAKE, *PATTERNS, *OTHER})
    assert [command for command in left if not command.startswith(EXPENSIVE + KEPT)] == []
    assert {"make figures", "make test"} <= TYPED


@pytest.mark.parametrize("command", sorted(CHEAP.keys() & TYPED))
def test_cheap_commands_run(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert python_m(command, *(part.format(tmp=tmp_path) for part in CHEAP[command]))() == 0
    assert capsys.readouterr().out


@pytest.mark.parametrize("command", sorted(command for command in TYPED if command.startswith(EXPENSIVE)))
def test_expensive_commands_exist(command, monkeypatch, capsys):
    """A run of the study is planned with the very same arguments; others say what they would do."""
    monkeypatch.chdir(ROOT)
    module = command.split()[2]
    instead = command.replace(" run ", " plan ") if module == "analysis.study" else f"python -m {module} --help"
    try:
        status = python_m(instead)()
    except SystemExit as end:  # --help
        status = end.code
    assert status == 0
    assert capsys.readouterr().out


@pytest.mark.parametrize("command", sorted(name for name, runs in MAKE.items() if runs))
def test_make_targets_run_what_they_say(command):
    make = pytest.importorskip("shutil").which("make")
    if make is None:
        pytest.skip("GNU make is not installed")
    run = subprocess.run([make, "-n", *command.split()[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert MAKE[command] in run.stdout


def test_jupyter_lab_is_there_and_has_notebooks():
    pytest.importorskip("jupyterlab", reason="the notebooks extra is not installed")
    assert list((ROOT / "notebooks").glob("*.ipynb"))


def test_first_hour_redraw_figure_1(tmp_path, monkeypatch):
    (command,) = [c for c in TYPED if c.startswith("python -m paper_figures --only response")]
    monkeypatch.chdir(ROOT)
    assert python_m(command, "--out", str(tmp_path))() == 0
    assert (tmp_path / "response.pdf").read_bytes().startswith(b"%PDF")
    assert (tmp_path / "response.png").read_bytes().startswith(b"\x89PNG")
    (picture,) = re.findall(r"^!\[.*\]\((.*response\.png)\)$", README, re.MULTILINE)
    assert (ROOT / picture).exists()


def test_the_answer_for_a_hugging_face_model(tmp_path, monkeypatch, capsys):
    """The block as it stands, but for the file of the model."""
    pytest.importorskip("transformers", reason="the huggingface extra is not installed")
    from tiny_models import save_folder

    code = block("audit_model(")
    save_folder(tmp_path / "model")
    monkeypatch.setattr("analysis.language_models.packaged_smollm2", lambda: tmp_path / "model")
    monkeypatch.setattr("analysis.language_models.python_text", lambda: ["To be or not to be. " * n for n in (9, 5, 7)])
    assert len([line for line in code.splitlines() if line]) == 5
    exec(code, {})
    printed = capsys.readouterr().out.splitlines()
    (shown,) = re.findall(r"<!-- answer -->\n```text\n(.*?)```\n<!--", README, re.DOTALL)
    starts = ("Would smoothing act", "How much confidence would it take?", "What to do for calibration")
    for start, line in zip(starts, printed, strict=True):
        assert line.startswith(start)
        assert f"\n{start}" in f"\n{shown}"
    assert "b = 0.1: " in printed[0]


def test_the_answer_that_is_quoted_is_what_the_lines_print(monkeypatch):
    """Of a real model, which is not here: by the model and the arguments of its committed table, whose answer is quoted."""
    pytest.importorskip("transformers", reason="the huggingface extra is not installed")
    from tiny_models import make

    from analysis import audit, language_models

    path = ROOT / "paper_figures" / "data" / "audit_smollm2.csv"
    table = pd.read_csv(path, dtype={"group": str})
    sidecar = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    made, asked, loaded = sidecar["config"], {}, {}
    monkeypatch.setattr(audit, "audit_model", lambda *_, **given: asked.update(given) or SimpleNamespace(answer=""))
    monkeypatch.setattr(language_models, "python_text", list)
    monkeypatch.setattr(language_models, "packaged_smollm2", lambda: "smollm2")
    monkeypatch.setattr(language_models, "load_model", lambda *a, **given: loaded.update(given, name=a) or ("", ""))
    exec(block("audit_model("), {})
    assert loaded == {"name": ("smollm2",)}
    assert " analysis.audit smollm2 --text python " in sidecar["command"]
    assert "takes five lines, and a minute on a CPU with SmolLM2-135M in 4 bits" in README
    assert sidecar["device"] == "cpu"
    assert 30 < sidecar["wall_seconds"] < 90
    assert f"On the text of Python {'.'.join(sidecar['versions']['python'].split('.')[:2])} it prints:" in README
    defaults = {
        name: parameter.default
        for function in (audit_model, load_model)
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    assert str(defaults["dtype"]) == f"torch.{made['dtype']}"
    for name in ("max_tokens", "max_length", "skip", "batch_size"):
        assert asked.get(name, defaults[name]) == made[name], name
    assert set(asked["label_smoothing"]) <= set(made["label_smoothing"])
    kept = ~table["part"].isin(["smoothing", "cap"]) | table["group"].isin([str(b) for b in asked["label_smoothing"]])
    (shown,) = re.findall(r"<!-- answer -->\n```text\n(.*?)```\n<!--", README, re.DOTALL)
    assert " ".join(shown.split()) == " ".join(audit.recommendation(table.loc[kept], evidence=False).split())
    # and the table lacks nothing of what the answer reads that an audit has now
    of_now = audit_model(make(), torch.randint(3, 50, (4, 12))).table
    parts = ("prediction", "smoothing", "calibration", "temperature", "recommendation")
    now, then = (
        {(part, name) for part, name in zip(t["part"], t["name"], strict=True) if part in parts}
        for t in (of_now, table)
    )
    assert now <= then


def test_how_a_real_model_fared_is_said_as_the_audit_says_it():
    from analysis.audit._verdict import TUNED

    notes = (ROOT / "docs" / "law_notes.md").read_text(encoding="utf-8")
    assert f"on new texts, not drawn, by {TUNED} times" in " ".join(notes.split())
    (fall,) = re.findall(r"([\d.]+) \(b = 0\.1\) of a mean confidence of 0\.\d+", " ".join(README.split()))
    (said,) = re.findall(r"would lose some ([\d.]+) to ([\d.]+) by b = 0\.1\.\s", README)
    least, most = map(float, TUNED.split(" to "))
    assert said == (f"{least * float(fall):.2f}", f"{most * float(fall):.2f}")


def test_what_smoothing_takes_above_an_index_of_one_is_what_the_figure_shows():
    """Nothing where one next token is right; else up to the largest fall in the column of panel (b) at 0."""
    from paper_figures import response

    paths = {name: find_table(ROOT / "paper_figures" / "data", name) for name in (*response.TABLES, "S4", "S5")}
    drawn = response.prepare({name: read_table(path) for name, path in paths.items() if path is not None})
    above = drawn[drawn["clipped"] == 0].groupby("kind")["fall"]  # A of at least 1
    assert above.size().min() > 50
    assert above.get_group("one right token").abs().max() < 0.0005
    (said,) = re.findall(r"else up to ([\d.]+) in simulated heads", README)
    assert said == f"{above.get_group('several (noisy)').max():.2f}"


def test_own_hidden_states_and_head_give_what_is_shown(capsys):
    """As it stands; and independently, by full logits in float64."""
    names: dict[str, Any] = {}
    exec(block("head_statistics("), names)
    (shown,) = re.findall(r"It prints `(confidence [^`]+)`", README)
    assert capsys.readouterr().out == f"{shown}\n"
    log_p = (names["hidden"].double() @ names["weight"].double().T).log_softmax(-1)
    p, loss = log_p.exp(), -log_p.gather(1, names["target"][:, None]).mean()
    confidence = p.max(-1).values.mean()
    index = (-(p * log_p).sum(-1).mean() - loss) / (0.1 * (-log_p.mean() - loss))
    assert 0 < index < 1
    fall = 0.1 * (confidence - 1 / 4096) * (1 - index)
    assert shown == f"confidence {confidence:.2f}, index {index:.2f}, fall {fall:.2f}"
    assert f"takes some {fall:.2f} on such data" in README


def test_the_calibration_error_is_the_one_that_is_shown(tmp_path, monkeypatch, capsys):
    """Of the file that the block writes; the command that is named reads it, too."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(block("read_predictions("), names)
    (shown,) = re.findall(r"It prints `(calibration error [^`]+)`", README)
    assert capsys.readouterr().out == f"{shown}\n"
    off = names["confidence"].mean() - names["correct"].mean()  # as sure everywhere as it is too sure
    assert f"confidence is {off:.2f} off how often it was right" in README
    assert shown.startswith(f"calibration error {off:.2f},")
    assert python_m("python -m analysis.reliability predictions.csv", "--out", "scores.csv")() == 0
    assert f"ECE          {names['scores'].ece:.3f} " in capsys.readouterr().out


def test_the_loss_in_a_training_loop():
    torch.manual_seed(0)
    model, head = torch.nn.Embedding(32, 8), torch.nn.Linear(8, 32, bias=False)
    optimizer = torch.optim.Adam([*model.parameters(), *head.parameters()], lr=0.05)
    plain = block("linear_cross_entropy(hidden")
    (instead,) = re.findall(r"# instead of (torch\.nn.*)", plain)
    tokens = torch.arange(32)
    names = {"head": head, "target": tokens.roll(1)}
    losses = []
    for _ in range(30):
        names["hidden"] = model(tokens)
        exec(yours(plain), names)
        torch.testing.assert_close(names["loss"], eval(instead, names))
        names["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(names["loss"].item())
    assert losses[-1] < losses[0] - 1


def test_the_loss_in_a_hugging_face_model():
    transformers = pytest.importorskip("transformers", reason="the huggingface extra is not installed")
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    model, tokens = transformers.LlamaForCausalLM(config), torch.randint(64, (2, 9))
    logits = model(tokens).logits[:, :-1].flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(logits, tokens[:, 1:].flatten(), label_smoothing=0.1)
    names = {"model": model}
    for code in ("linear_cross_entropy(hidden", "fuse_loss("):
        exec(block(code), names)  # as they stand
    torch.testing.assert_close(
        names["loss"], eval("torch.nn.functional.cross_entropy(head(hidden), target, label_smoothing=0.1)", names)
    )
    output = model(tokens, labels=tokens)
    torch.testing.assert_close(output.loss, expected)
    assert output.logits is None


def test_every_block_of_python_is_run_above():
    tested = ("head_statistics(", "audit_model(", "linear_cross_entropy(hidden", "fuse_loss(", "read_predictions(")
    assert [code for code in BLOCKS if not any(text in code for text in tested)] == []
    assert len(BLOCKS) == len(tested)


def test_each_finding_is_one_sentence_with_one_number_and_one_link():
    """Outside code and addresses; in digits, and no other in words."""
    (section,) = re.findall(
        r"^## What we found\n<!-- found -->\n(.*?)\n<!-- end of found -->\n!", README, re.DOTALL | re.M
    )
    lines = section.splitlines()
    assert [line[:3] for line in lines] == [f"{n}. " for n in range(1, 7)]
    words = "two|three|four|five|six|seven|eight|nine|ten|half|twice|a third|a tenth|double"
    for line in (line[3:] for line in lines):
        assert re.search(r" \(\[[^]]+\]\(docs/[\w#/.-]+\)\)\.$", line), line
        assert line.count("](") == 1, line
        said = re.sub(r"\]\([^)]*\)|`[^`]+`", "", line)
        assert len(re.findall(r"[.?!](?=\s|$)", said)) == 1, f"one sentence: {line}"
        assert len(re.findall(r"\d+(?:[.,]\d+)*", said)) == 1, f"one number: {line}"
        assert not re.search(rf"\b({words})\b", said), f"one number: {line}"


def test_what_became_of_the_claims_is_what_the_verdicts_say():
    words = pd.read_csv(ROOT / "paper_figures" / "data" / "verdicts.csv")["verdict"].value_counts().to_dict()
    assert words == {"supported": 1, "depends on": 8}
    said = " ".join(README.split())
    assert re.search(
        r"Of its nine claims one held as stated in simulation \([^()]+\), eight \[under conditions\]", said
    )


def test_what_became_of_the_claims_on_real_models_is_what_their_verdicts_say():
    """Every claim that is refuted in one of the three tunings of real models is named."""
    data = ROOT / "paper_figures" / "data"
    refuted = {}
    for name in ("real_gemma", "real_smollm2", "instruction"):
        words = pd.read_csv(data / f"{name}_verdicts.csv").set_index("claim")["verdict"]
        refuted[name] = set(words.index[words == "refuted"])
    assert refuted == {"real_gemma": {"K4"}, "real_smollm2": {"K2", "K4", "K8"}, "instruction": set()}
    said = "on two small real models the one on sizes is refuted, in a tuning of one also those on calibration and features."
    assert said in " ".join(README.split())


def test_accuracy_on_other_text_is_lost_in_two_of_three_real_tunings():
    """By every seed, at the last epoch; and the claim that held in simulation is the one that says it is kept."""
    data = ROOT / "paper_figures" / "data"
    verdicts = pd.read_csv(data / "verdicts.csv").set_index("verdict")
    assert verdicts.loc["supported", "statement"].startswith("accuracy kept")
    lost = {}
    for name in ("real_gemma", "real_smollm2", "instruction_full"):
        table = read_table(find_table(data, name))
        rows = table[(table["view"] == "text") & (table["reading"] == "as_trained")]
        rows = rows[rows["epoch"] == rows["epoch"].max()]
        if name == "instruction_full":
            rows = rows[(rows["split"] == "test") & (rows["temperature"] == 1) & rows["softcap"].isna()]
        else:
            rows = rows[(rows["split"] == "scored") & rows["bin"].isna() & rows["within"].isna()]
        by_seed = rows.pivot(index="data_seed", columns="label_smoothing", values="accuracy")
        assert len(by_seed) == 3
        lost[name] = by_seed[0.0] - by_seed[0.1]
    assert {name for name, each in lost.items() if (each > 0).all()} == {"real_gemma", "instruction_full"}
    assert lost["real_smollm2"].max() <= 0
    assert "(accuracy kept; on other text two of three real tunings lost some)" in " ".join(README.split())


def test_files_that_are_named_exist():
    named = re.findall(r"`((?:paper_figures/data|docs)/[\w/]+\.\w+)`|\]\((?!http)([\w/.]+)\)", README)
    paths = [ROOT / (a or b) for a, b in named]
    assert len(paths) >= 6
    assert [p for p in paths if not p.exists()] == []


def test_the_picture_is_the_redrawn_figure(tmp_path):
    """Pixel by pixel, but for a handful: the last bits of a curve depend on the CPU, and matplotlib's version on more."""
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    if f'matplotlib=={matplotlib.__version__}; python_version >= "3.11"' not in pins:
        pytest.skip(f"matplotlib {matplotlib.__version__} is not the pinned one")
    shown = re.findall(r"!\[[^\]]+\]\((paper_figures/data/[\w/]+\.png)\)", README)
    assert shown
    for path in map(Path, shown):
        preset = "quick" if path.parent.name == "quick" else "full"
        draw = python_m(f"python -m paper_figures --only {path.stem} --preset {preset}", "--out", str(tmp_path))
        assert draw() == 0
        drawn, committed = (matplotlib.image.imread(file) for file in (tmp_path / path.name, ROOT / path))
        redo = f"python -m paper_figures --only {path.stem} --preset {preset}, then copy the PNG to {path}"
        assert drawn.shape == committed.shape, redo
        assert (abs(drawn - committed).max(-1) > 2 / 255).sum() <= 20, redo


def test_the_table_of_figures():
    body = table("| figure | shows")
    assert list(FIGURES) == [row[0].strip("`") for row in body]
    for *_, command in body:
        assert command.split("`")[1].split()[2] in dict(commands())


def test_the_map_from_the_claims_names_figures_and_tables_that_are_there():
    body = table("| claim of the paper")
    assert [row[0][:2] for row in body] == [f"K{n}" for n in range(1, 10)]
    for _, figures, tables, _ in body:
        assert set(re.findall(r"`(\w+)`", figures)) <= set(FIGURES)
        names = re.findall(r"`(\w+)`", tables)
        assert names
        assert [name for name in names if find_table(ROOT / "paper_figures" / "data", name) is None] == []


def test_contributing_says_where_every_module_lives():
    rooms = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## Habits")[0]
    for package in ("analysis", "kernel"):
        lines = "".join(line for line in rooms.splitlines() if line.startswith(f"| `{package}/`"))
        named = {name.rstrip("/") for name in re.findall(r"`([\w*]+/?)`", lines.replace(f"`{package}/`", ""))}
        direct = {name.split(".")[1] for name, _ in modules(package) if "." in name}
        assert [name for name in sorted(direct) if not any(fnmatch(name, pattern) for pattern in named)] == []
