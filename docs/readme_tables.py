"""Write the tables of README and docs anew from the committed ones: ``python docs/readme_tables.py``."""

from __future__ import annotations

import argparse
import json
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

__all__ = ["PAGES", "PARTS", "main", "render"]

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]  # paper_figures is no part of the installed package
from notes_tables import audit, cost, rivals, temperature, uncapped
from real_tables import MODELS
from scratch_tables import transformers

DATA = ROOT / "paper_figures" / "data"
_GENERATED = ("kernel", "reproduce", "study", "study_notes", "theory_notes", "using_the_loss", "will_smoothing_help")
PAGES = (
    ROOT / "README.md",
    *(ROOT / "docs" / f"{name}.md" for name in _GENERATED),
)
_FALLS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02)  # in confidence
_SHAPES = ("Gemma-2-2B", "Llama-3-8B", "Qwen2.5-0.5B")
_KEY = (
    "Epoch 2: the same rule where tuning ends after "
    "two epochs, the budget of the paper. Of the solver alone: deterministic targets are the same for every seed."
)
_OURS, _KEPT, _RIVAL = "triton, default", "triton, all kept", "Liger-Kernel, float32 sums"
# Name in kernel.csv -> name in the README, in its order.
_IMPLEMENTATIONS = {
    _OURS: "`triton`, 128 MiB workspace (default)",
    _KEPT: "`triton`, all strips kept",
    "chunked": "`chunked`",
    "eager": "eager, bfloat16 logits",
    "torch.compile": "torch.compile",
    "Liger-Kernel": "Liger-Kernel",
    _RIVAL: "Liger-Kernel, float32 sums, its best chunk",
}


def verdicts(data: Path) -> str:
    """The claims, what became of them, and the real model; where the full table leaves one open, the quick line."""
    quick = data / "quick" / "verdicts.csv"
    path = next(p for p in (data / "verdicts.csv", quick) if p.exists())
    table: Any = _judged(path)
    undecided = set(table.loc[table["verdict"] == "not decided", "claim"]) if path != quick else set()
    if undecided:
        small: Any = _judged(quick)
        table = pd.concat([table[~table["claim"].isin(undecided)], small[small["claim"].isin(undecided)]])
        table = table.sort_values("claim", kind="stable")
    names = {
        "instruction_verdicts": "on a real model",
        **{f"real_{short}_verdicts": f"on {name}" for short, name in MODELS.items()},
    }
    real: dict[str, Any] = {
        name: pd.read_csv(data / f"{table}.csv").fillna({"early_verdict": ""}).set_index("claim")
        for table, name in names.items()
        if (data / f"{table}.csv").exists()
    }
    model = json.loads((data / "instruction_full.json").read_text(encoding="utf-8"))["source"]["model"]
    lines = [
        f"| | claim of the paper | verdict | measured | 95 % interval | {' | '.join(real)} |",
        "|---" * (5 + len(real)) + "|",
    ]
    for row in table.itertuples():
        size = "" if pd.isna(row.mean) else f": {row.mean:.3f}"
        interval = "" if pd.isna(row.low) else f"{row.low:.3f} to {row.high:.3f}"
        interval += {"shapes": " (range over shapes)", "seeds": ""}.get(row.interval_over, " (of the solver alone)")
        verdict = f"{row.verdict} {row.depends_on}".strip() + (" (quick)" if row.claim in undecided else "")
        if row.early_verdict:
            size += f" (at epoch 2: {row.early_mean:.3f})"
            verdict += _then(row.verdict, row.early_verdict)
        on_models = [_on_model(judged, row.claim) for judged in real.values()]
        cells = (row.claim, row.statement, verdict, row.effect + size, interval, *on_models)
        lines.append(f"| {' | '.join(cells)} |")
    unfinished = f"(quick): from `{_shown(quick)}`, as the full grid is unfinished there; " if undecided else ""
    source = (
        f"From `{_shown(path)}`, preset {table['preset'].iloc[0]}; {unfinished}real model: tunings of {model}, "
        f"which had been instruction-tuned before, `{_shown(data / 'instruction_verdicts.csv')}`."
    )
    if len(real) > 1:
        source += " Named models: tuned on pairs of instruction and response, `paper_figures/data/real_*_verdicts.csv`."
    return "\n".join([*lines, "", _wrapped(f"{_KEY} {source}")])


def _on_model(judged: Any, claim: str) -> str:
    """The verdict on a real model; empty where the claim was not asked of it."""
    if claim not in judged.index:
        return ""
    row = judged.loc[claim]
    return row["verdict"] + _then(row["verdict"], row["early_verdict"])


def _then(word: str, early: str) -> str:
    """What the verdict is where tuning ends after two epochs, if it is another."""
    return "" if early in ("", word) else f" (at epoch 2: {early})"


def _judged(path: Path) -> pd.DataFrame:
    """Verdicts with the numbers of their findings, which lie beside them."""
    from analysis.claims.findings import headlines

    return headlines(pd.read_csv(path), pd.read_csv(path.with_name("findings.csv")))


def found(data: Path) -> str:
    """What the study found, in sentences with one number each."""
    from analysis.lab.registry import experiment

    numbers: Any = pd.read_csv(data / "findings.csv")
    of_all = numbers[numbers["cell"].isna()].set_index(["claim", "finding"])["mean"]
    budget: Any = numbers[numbers["cell"] == "arm=budget"].set_index(["claim", "finding"])["mean"]
    cost: Any = pd.read_csv(data / "kernel.csv")
    cost = cost[
        (cost["shape"] == _SHAPES[0])
        & (cost["mode"] == "loss and gradients")
        & (cost["label_smoothing"] == 0.1)
        & cost["softcap"].isna()
        & (cost["ignored"] == 0)
    ].set_index("implementation")
    share = cost.at[_OURS, "peak_mib"] / cost.at["eager", "peak_mib"]
    judged: Any = pd.read_csv(data / "verdicts.csv")
    words, kept = judged["verdict"].value_counts(), judged[judged["verdict"] == "supported"]
    holds = ", ".join(f"{row.claim}: {row.statement}".replace("NLL", "loss") for row in kept.itertuples())
    steps, of_64 = (numbers.loc[numbers["finding"] == f"step_from_{size}", "mean"] for size in (16, 64))
    remedies: Any = numbers[numbers["finding"].isin(["gain_of", "accuracy_loss_of"])]
    remedies = remedies.set_index(["finding", "cell"])["mean"]
    fitted, early = (remedies["gain_of", f"method={method}"] for method in ("b=0 post_hoc", "early stopping"))
    (examples,) = {config.examples for config in experiment("S7").configs("full")}
    both: Any = numbers.loc[numbers["finding"] == "gain_of_both", "mean"]
    real: Any = pd.read_csv(data / "instruction_findings.csv")
    elsewhere = real[real["cell"].isna()].set_index("finding")["mean"]["gain_elsewhere"]
    sentences = (
        "**Long tuning makes models over-confident**: in simulated instruction tuning the calibration error on the "
        f"pretraining distribution rose by {of_all['K1', 'rise_elsewhere_at_epoch_2']:.2f} after two epochs and "
        f"{of_all['K1', 'rise_elsewhere']:.2f} after {of_all['K1', 'last_epoch']:.0f} (over {examples} examples).",
        "**Smoothing helps if tuning is long**: with b = 0.1 the error on new questions was "
        f"{of_all['K2', 'gain']:.3f} lower at the end, {of_all['K2', 'gain_at_epoch_2']:.3f} after two epochs. A "
        f"fitted temperature ({fitted:.3f}) and early stopping ({early:.3f}, at "
        f"{remedies['accuracy_loss_of', 'method=early stopping']:.3f} of accuracy) did more. Smoothing harms where "
        "confidence exceeds accuracy by less than half of what it takes; on SmolLM2 it cost ordinary text "
        f"{-elsewhere:.2f} of calibration and {_lost_on_text(data):.2f} of accuracy.",
        "**Norms cap confidence, hidden size less so**: at fixed norms, hidden size 64 to 256 adds "
        f"{of_all['K3', 'step_from_64']:.2f} on average (at most {of_64.max():.2f}), 16 to 64 up to {steps.max():.2f}.",
        "**What smoothing takes can be predicted** in simulation (figure). It took less than 0.01 of confidence in all "
        f"{of_all['K4', 'settings_inert']:.0f} settings with deterministic targets and an index above 1.25.",
        "**Training at a lower temperature gives smoothing its effect back** under a bound on the norms, by "
        f"{budget['K5', 'rise']:.2f} of calibration error; but doing neither was as good or better in "
        f"{(both <= 0).sum()} of {len(both)} arms. Capping the logits rarely does.",
        f"**The loss is lean**: at {_SHAPES[0]}'s size it needs {share:.0%} of the memory of eager PyTorch's in the "
        "same time ([beside Liger-Kernel and others](docs/kernel.md#what-it-costs)).",
    )
    first = textwrap.fill(
        f"Of {words.sum()} claims {words.get('supported', 0)} holds as stated ({holds}) and "
        f"{words.get('depends on', 0)} depend on conditions ([each verdict](docs/study.md#claims-and-verdicts)).",
        120,
    )
    several = [
        textwrap.fill(f"{n}. {line}", 120, subsequent_indent="   ", break_long_words=False, break_on_hyphens=False)
        for n, line in enumerate(sentences, 1)
    ]
    return "\n".join([first, "", *several])


def _lost_on_text(data: Path) -> float:
    """Accuracy that b = .1 costs the tuned real model on ordinary text, at the last epoch, mean over seeds."""
    from analysis.lab.tables import find_table, read_table

    path = find_table(data, "instruction_full")
    assert path is not None
    rows: Any = read_table(path)
    rows = rows[(rows["view"] == "text") & (rows["reading"] == "as_trained") & (rows["epoch"] == rows["epoch"].max())]
    rows = rows[rows["softcap"].isna() & (rows["temperature"] == 1)]
    accuracy = rows.groupby("label_smoothing")["accuracy"].mean()
    return float(accuracy[0] - accuracy[0.1])


def figures(data: Path) -> str:
    """Every figure, what it shows, the tables that it draws and the command that makes the first of them."""
    from paper_figures import FIGURES
    from paper_figures.tables import needed_command

    lines = ["| figure | shows | tables | the first made by |", "|---|---|---|---|"]
    for name, path in FIGURES.items():
        module = import_module(path)
        shows = (module.__doc__ or "").partition("\n")[0].rstrip(".")
        command, _, needs = needed_command(module.TABLES[0], "quick").partition(" (")
        made = f"`{command}`" + (f" ({needs}" if needs else "")
        lines.append(f"| `{name}` | {shows} | {', '.join(f'`{table}`' for table in module.TABLES)} | {made} |")
    return "\n".join(lines)


def kernel(data: Path) -> str:
    """Time, memory and error of the loss and its rivals on one GPU."""
    rows: Any = pd.read_csv(data / "kernel.csv")
    rows = rows[(rows["mode"] == "loss and gradients") & rows["softcap"].isna() & (rows["ignored"] == 0)]
    smooth = rows[rows["label_smoothing"] == 0.1].set_index(["implementation", "shape"])
    plain = rows[(rows["label_smoothing"] == 0) & (rows["shape"] == _SHAPES[0])].set_index("implementation")["ms"]
    found = {name: smooth.loc[name].loc[list(_SHAPES)] for name in _IMPLEMENTATIONS}
    error = {n: f[["input_gradient_error", "weight_gradient_error"]].max().max() for n, f in found.items()}
    ours, kept, rival = found[_OURS], found[_KEPT], found[_RIVAL]
    sizes = ours[["tokens", "vocab_size", "hidden_size"]].astype(int)
    shapes = ", ".join(f"{name} {' x '.join(map(str, size))}" for name, *size in sizes.itertuples())
    about = json.loads((data / "kernel.json").read_text(encoding="utf-8"))
    versions = about["versions"]
    where = (
        f"On one {about['device']} (bfloat16, torch {versions['torch']}, Triton {versions['triton']}, Liger-Kernel "
        f"{versions['liger_kernel']}; peaked logits; tokens x vocabulary x hidden: {shapes}), MiB over the inputs, of "
        f"which the gradients are {_list(ours['gradient_mib'], '.0f')}; error against float64; from "
        "`paper_figures/data/kernel.csv`, made by `python -m kernel.benchmark`:"
    )
    for run in about.get("runs", [])[1:]:
        where = where.removesuffix(":") + f" ({', '.join(run['shapes'])} in a run apart):"
    head = f"| loss and gradients, smoothing 0.1 | {': ms, MiB | '.join(_SHAPES)}: ms, MiB | worst gradient error |"
    lines = [_wrapped(where), "", head, "|---|" + "---|" * (len(_SHAPES) + 1)]
    for name, label in _IMPLEMENTATIONS.items():
        cells = [f"{ms:.1f}, {mib:.0f}" for ms, mib in zip(found[name]["ms"], found[name]["peak_mib"], strict=True)]
        lines.append(f"| {label} | {' | '.join(cells)} | {error[name]:.4f} |")
    comparison = (
        "Recomputing the logits takes four matrix products, keeping them three: the default takes "
        f"{_list(ours['ms'] / ours['matmul_ms'])} times `input @ weight.T` at the three shapes, all strips kept "
        f"{_list(kept['ms'] / kept['matmul_ms'])} times. Against Liger-Kernel with float32 sums the default takes "
        f"{_list(ours['ms'] / rival['ms'])} times the time, {_list(ours['peak_mib'] / rival['peak_mib'])} times the "
        f"memory and has {error[_OURS] / error[_RIVAL]:.2f} times the gradient error; all strips kept take "
        f"{_list(kept['ms'] / rival['ms'])} times the time. cut-cross-entropy has no label smoothing; without it, it "
        f"takes {plain['cut-cross-entropy, filter']:.1f} ms (filtered) or {plain['cut-cross-entropy, exact']:.1f} ms "
        f"at {_SHAPES[0]}, the default {plain[_OURS]:.1f} ms."
    )
    return "\n".join([*lines, "", _wrapped(comparison)])


def kernel_targets(data: Path) -> str:
    """What was asked of the kernel and what the table has, a line a requirement, a column a shape."""
    from kernel.benchmark.targets import Table, read, targets

    found = list(targets(Table(read(data / "kernel.csv")), read(data / "first_call.csv")))
    shapes = list(dict.fromkeys(t.shape for t in found))
    lines = [f"| | asked | {' | '.join(shapes)} |", "|---|---|" + "---|" * len(shapes)]
    for name in dict.fromkeys(t.line for t in found):
        of_line = [t for t in found if t.line == name]
        cells = []
        for shape in shapes:
            measured = [t for t in of_line if t.shape == shape]
            cells.append(", ".join(_figure(t.measured) if t.met else f"**{_missed(t)}**" for t in measured))
        asked = " or ".join(dict.fromkeys(_figure(t.asked) for t in of_line))
        sign = "at least" if of_line[0].at_least else "at most"
        asked = f"{asked} {of_line[0].unit}".strip()
        lines.append(f"| {name} | {sign} {asked} | {' | '.join(cells)} |")
    about = json.loads((data / "kernel.json").read_text(encoding="utf-8"))
    where = (
        f"One {about['device']}, {about['config']['rounds']} rounds, commit `{about['commit'][:12]}`; bold: not met. "
        f"{sum(t.met for t in found)} of {len(found)} figures met: `python -m kernel.benchmark.targets` prints each."
    )
    return "\n".join([*lines, "", _wrapped(where)])


def _figure(value: float) -> str:
    """Three digits, or all of a number of hundreds and more."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _missed(target: Any) -> str:
    """A figure with the digits that tell it from what was asked."""
    text = _figure(target.measured)
    return f"{target.measured:.4g}" if text == _figure(target.asked) else text


def kernel_floors(data: Path) -> str:
    """The part of a loss that keeps its logits that nothing avoids, beside what ours takes."""
    rows: Any = pd.read_csv(data / "kernel.csv")
    rows = rows[
        (rows["mode"] == "loss and gradients")
        & rows["softcap"].isna()
        & (rows["ignored"] == 0)
        & (rows["label_smoothing"] == 0.1)
    ].set_index(["shape", "implementation"])
    ratio = rows["ms"] / rows["matmul_ms"]
    lines = [
        "| in t_mm | three products by the library | all strips kept | of it beyond the products |",
        "|---|---|---|---|",
    ]
    for shape in dict.fromkeys(rows.index.get_level_values("shape")):
        least, kept = ratio[shape, "three products"], ratio[shape, _KEPT]
        lines.append(f"| {shape} | {least:.2f} | {kept:.2f} | {kept - least:+.2f} |")
    return "\n".join(lines)


def kernel_host(data: Path) -> str:
    """What the host takes to enqueue a call, beside what the device takes to compute it."""
    rows: Any = pd.read_csv(data / "kernel.csv")
    rows = rows[rows["softcap"].isna() & (rows["label_smoothing"] == 0.1) & rows["ms"].notna()]
    shapes = list(dict.fromkeys(rows["shape"]))
    lines = [f"| host, device: ms | {' | '.join(shapes)} |", "|---|" + "---|" * len(shapes)]
    for name, ignored, mode in (
        *((n, 0.0, "loss and gradients") for n in (_OURS, "triton, 32 MiB", _KEPT)),
        (_OURS, 0.8, "loss and gradients"),
        (_OURS, 0.0, "loss"),
        *((n, 0.0, "loss and gradients") for n in ("eager", "torch.compile", "Liger-Kernel")),
    ):
        of_line = rows[(rows["implementation"] == name) & (rows["ignored"] == ignored) & (rows["mode"] == mode)]
        times = of_line.set_index("shape")[["host_ms", "ms"]]
        cells = [f"{times.at[shape, 'host_ms']:.1f}, {times.at[shape, 'ms']:.1f}" for shape in shapes]
        label = name + (", 80 % ignored" if ignored else "") + (", loss only" if mode == "loss" else "")
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def statistics(data: Path) -> str:
    """What the statistics of a head cost beside the loss-only forward."""
    rows: Any = pd.read_csv(data / "statistics.csv")
    rows = rows[rows["softcap"].isna() & (rows["temperatures"] > 0)].set_index("temperatures")
    device = json.loads((data / "statistics.json").read_text(encoding="utf-8"))["device"]
    return _wrapped(
        "`kernel.head_statistics` gives confidence, entropy, ranks and more of every token, at up to eight "
        f"temperatures in one sweep, without logits: {rows['peak_mib'].max():.0f} MiB at {rows['shape'].iloc[0]}'s "
        f"shape, at {rows['ratio'].loc[1]:.1f} (one temperature) to {rows['ratio'].loc[8]:.1f} times (eight) the "
        f"loss-only forward's time on one {device} (`paper_figures/data/statistics.csv`)."
    )


def cpu(data: Path) -> str:
    """The chunked loss against eager PyTorch on a CPU."""
    rows: Any = pd.read_csv(data / "chunked.csv")
    about = json.loads((data / "chunked.json").read_text(encoding="utf-8"))
    threads, version = about["config"]["threads"], about["versions"]["torch"]
    where = (
        f"On a CPU ({threads} threads, torch {version}), float32, loss and both gradients, smoothing "
        "0.1, against `cross_entropy(input @ weight.T)`; from `paper_figures/data/chunked.csv`, made by "
        "`python -m kernel.benchmark.cpu`:"
    )
    head = "| tokens x vocabulary x hidden | time, chunked / eager | peak memory, chunked | eager |"
    lines = [_wrapped(where), "", head, "|---|---|---|---|"]
    for row in rows[(rows["label_smoothing"] == 0.1) & rows["softcap"].isna()].itertuples():
        shape = f"{row.tokens} x {row.vocab_size} x {row.hidden_size}"
        lines.append(f"| {shape} | {row.time_ratio:.2f} | {row.chunked_peak_mib} MiB | {row.eager_peak_mib} MiB |")
    return "\n".join(lines)


def training_step(data: Path) -> str:
    """A whole model's training step with its own loss and with the fused one."""
    rows: Any = pd.read_csv(data / "training_step.csv")
    about = json.loads((data / "training_step.json").read_text(encoding="utf-8"))
    versions = about["versions"]
    first = rows.iloc[0]
    where = (
        f"A training step of a Llama of SmolLM2-135M's shape ({first.layers} layers, hidden {first.hidden_size}, "
        f"vocabulary {first.vocab_size}) on {first.tokens} tokens, {about['device']}, bfloat16 autocast, torch "
        f"{versions['torch']}, transformers {versions['transformers']}; from `paper_figures/data/training_step.csv`, "
        "made by "
        "`python -m kernel.benchmark.training_step`:"
    )
    lines = [_wrapped(where), "", "| loss | smoothing | checkpointing | peak memory | time |", "|---|---|---|---|---|"]
    for row in rows.itertuples():
        checkpointing = "yes" if row.checkpointing else "no"
        cells = (row.loss, f"{row.label_smoothing:g}", checkpointing, f"{row.peak_mib:.0f} MiB", f"{row.ms:.1f} ms")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def models(data: Path) -> str:
    """Which models can be fused, by their ``config.model_type``, and which cannot."""
    table: Any = import_module("kernel.huggingface._known")
    known, images = {*table.KNOWN}, {*table.MULTIMODAL}
    experts = {name for name in known if table.KNOWN[name].body.__name__ == "balanced_body"}
    kinds = {
        "language models": known - images - experts,
        "mixtures of experts with an auxiliary loss": experts - images,
        "with images": images,
    }
    for reason in sorted({*table.REFUSED.values()}):
        kinds[f"refused: {reason}"] = {name for name, why in table.REFUSED.items() if why == reason}
    lines = [f"| {len(known)} known, and some that are refused | `config.model_type` |", "|---|---|"]
    return "\n".join([*lines, *(f"| {kind} | {', '.join(sorted(names))} |" for kind, names in kinds.items())])


def thresholds(data: Path) -> str:
    """Predictors of where smoothing acts below full rank: heads on the wrong side, by what is called acting."""
    rows: Any = pd.read_csv(data / "transition.csv")
    rows = rows[rows["hidden_size"] < np.log(rows["vocab_size"])]
    fall = (rows["confidence_plain"] - rows["confidence_smoothed"]).abs()
    asked = 1 - rows["label_smoothing"] * (1 - 1 / rows["vocab_size"])
    acting = {
        "rho > 1": ("m, V, b", rows["effectiveness_ratio"] > 1),
        "rho with the rank-aware bound > 1": ("m, V, D, b", rows["rank_ratio"] > 1),
        "activity index A < 1": ("forward passes of the plain head", rows["activity_index"] < 1),
        "predicted activity < 1": ("m, V, D, b", rows["predicted_activity"] < 1),
        "plain confidence > 1 - b + b/V": ("forward passes of the plain head", rows["confidence_plain"] > asked),
    }
    head = f"| wrong of {len(rows)}, where a fall counts from | needs | {' | '.join(map('{:g}'.format, _FALLS))} |"
    lines = [head, "|---|---|" + "---|" * len(_FALLS)]
    for name, (needs, acts) in acting.items():
        wrong = [str(int((acts != (fall > least)).sum())) for least in _FALLS]
        lines.append(f"| {name} | {needs} | {' | '.join(wrong)} |")
    counted = [str(int((fall > least).sum())) for least in _FALLS]
    return "\n".join([*lines, f"| heads that fall by more | | {' | '.join(counted)} |"])


def recommendation(data: Path) -> str:
    """The recommendation of the committed audit, each line as a paragraph of a quotation."""
    lines = import_module("analysis.audit").recommendation(pd.read_csv(data / "audit_smollm2.csv")).split("\n")
    return "\n>\n".join(textwrap.indent(_wrapped(line), "> ") for line in lines)


PARTS: dict[str, Callable[[Path], str]] = {
    "found": found,
    "verdicts": verdicts,
    "figures": figures,
    "kernel": kernel,
    "kernel targets": kernel_targets,
    "kernel floors": kernel_floors,
    "kernel host": kernel_host,
    "statistics": statistics,
    "cpu": cpu,
    "models": models,
    "training step": training_step,
    "thresholds": thresholds,
    "audit": audit,
    "full cost": cost,
    "temperature": temperature,
    "uncapped": uncapped,
    "rivals": rivals,
    "recommendation": recommendation,
    "transformers": transformers,
}


def _wrapped(text: str) -> str:
    """Lines of at most 120, none broken inside code."""
    whole = re.sub("`[^`]*`", lambda code: code[0].replace(" ", "\0"), text)
    return textwrap.fill(whole, width=120, break_long_words=False, break_on_hyphens=False).replace("\0", " ")


def _list(values: Any, form: str = ".2f") -> str:
    *first, last = (format(value, form) for value in values)
    return f"{', '.join(first)} and {last}"


def _shown(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name


def render(text: str, data: Path = DATA) -> str:
    """A page with every part that it marks written anew, between ``<!-- NAME -->`` and ``<!-- end of NAME -->``.

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
    return text


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
