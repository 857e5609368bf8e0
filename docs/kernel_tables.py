"""Tables of what the loss costs, and of the models that it is known for."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd
from table_text import listed, wrapped

__all__ = [
    "KEPT",
    "OURS",
    "RIVAL",
    "SHAPES",
    "byte_codes",
    "checks",
    "cpu",
    "kernel",
    "kernel_floors",
    "kernel_host",
    "kernel_targets",
    "models",
    "parallel",
    "scale",
    "statistics",
    "training_step",
]

SHAPES = ("Gemma-2-2B", "Llama-3-8B", "Qwen2.5-0.5B")
_LINEAR = 1.1  # the largest slope of log time over log size that is called linear
OURS, KEPT, RIVAL = "triton, default", "triton, all kept", "Liger-Kernel, float32 sums"
# Name in kernel.csv -> name in the table, in its order.
_IMPLEMENTATIONS = {
    OURS: "`triton`, default workspace",
    KEPT: "`triton`, all strips kept",
    "chunked": "`chunked`",
    "eager": "eager, bfloat16 logits",
    "torch.compile": "torch.compile",
    "Liger-Kernel": "Liger-Kernel",
    RIVAL: "Liger-Kernel, float32 sums, its best chunk",
}


def kernel(data: Path) -> str:
    """Time, memory and error of the loss and its rivals on one GPU."""
    rows: Any = pd.read_csv(data / "kernel.csv")
    rows = rows[(rows["mode"] == "loss and gradients") & rows["softcap"].isna() & (rows["ignored"] == 0)]
    smooth = rows[rows["label_smoothing"] == 0.1].set_index(["implementation", "shape"])
    plain = rows[(rows["label_smoothing"] == 0) & (rows["shape"] == SHAPES[0])].set_index("implementation")["ms"]
    found = {name: smooth.loc[name].loc[list(SHAPES)] for name in _IMPLEMENTATIONS}
    error = {n: f[["input_gradient_error", "weight_gradient_error"]].max().max() for n, f in found.items()}
    ours, kept, rival = found[OURS], found[KEPT], found[RIVAL]
    sizes = ours[["tokens", "vocab_size", "hidden_size"]].astype(int)
    shapes = ", ".join(f"{name} {' x '.join(map(str, size))}" for name, *size in sizes.itertuples())
    about = json.loads((data / "kernel.json").read_text(encoding="utf-8"))
    versions = about["versions"]
    where = (
        f"On one {about['device']} (bfloat16, torch {versions['torch']}, Triton {versions['triton']}, Liger-Kernel "
        f"{versions['liger_kernel']}; peaked logits; tokens x vocabulary x hidden: {shapes}), MiB over the inputs, of "
        f"which the gradients are {listed(ours['gradient_mib'], '.0f')}; error against float64; from "
        "`paper_figures/data/kernel.csv`, made by `python -m kernel.benchmark`:"
    )
    for run in about.get("runs", [])[1:]:
        where = where.removesuffix(":") + f" ({', '.join(run['shapes'])} in a run apart):"
    head = f"| loss and gradients, smoothing 0.1 | {': ms, MiB | '.join(SHAPES)}: ms, MiB | worst gradient error |"
    lines = [wrapped(where), "", head, "|---|" + "---|" * (len(SHAPES) + 1)]
    for name, label in _IMPLEMENTATIONS.items():
        cells = [f"{ms:.1f}, {mib:.0f}" for ms, mib in zip(found[name]["ms"], found[name]["peak_mib"], strict=True)]
        lines.append(f"| {label} | {' | '.join(cells)} | {error[name]:.4f} |")
    comparison = (
        "Recomputing the logits takes four matrix products, keeping them three: the default takes "
        f"{listed(ours['ms'] / ours['matmul_ms'])} times `input @ weight.T` at the three shapes, all strips kept "
        f"{listed(kept['ms'] / kept['matmul_ms'])} times. Against Liger-Kernel with float32 sums the default takes "
        f"{listed(ours['ms'] / rival['ms'])} times the time, {listed(ours['peak_mib'] / rival['peak_mib'])} times the "
        f"memory and has {error[OURS] / error[RIVAL]:.2f} times the gradient error; all strips kept take "
        f"{listed(kept['ms'] / rival['ms'])} times the time. cut-cross-entropy has no label smoothing; without it, it "
        f"takes {plain['cut-cross-entropy, filter']:.1f} ms (filtered) or {plain['cut-cross-entropy, exact']:.1f} ms "
        f"at {SHAPES[0]}, the default {plain[OURS]:.1f} ms."
    )
    return "\n".join([*lines, "", wrapped(comparison)])


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
        f"{about['device']}, {about['config']['rounds']} rounds, commit `{about['commit'][:12]}` (the first call: "
        f"`{json.loads((data / 'first_call.json').read_text(encoding='utf-8'))['commit'][:12]}`); bold: not met. "
        f"{sum(t.met for t in found)} of {len(found)} figures met: `python -m kernel.benchmark.targets` prints each."
    )
    return "\n".join([*lines, "", wrapped(where)])


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
        least, kept = ratio[shape, "three products"], ratio[shape, KEPT]
        lines.append(f"| {shape} | {least:.2f} | {kept:.2f} | {kept - least:+.2f} |")
    return "\n".join(lines)


def kernel_host(data: Path) -> str:
    """What the host takes to enqueue a call, beside what the device takes to compute it."""
    rows: Any = pd.read_csv(data / "kernel.csv")
    rows = rows[rows["softcap"].isna() & (rows["label_smoothing"] == 0.1) & rows["ms"].notna()]
    shapes = list(dict.fromkeys(rows["shape"]))
    lines = [f"| host, device: ms | {' | '.join(shapes)} |", "|---|" + "---|" * len(shapes)]
    for name, ignored, mode in (
        *((n, 0.0, "loss and gradients") for n in (OURS, "triton, 32 MiB", KEPT)),
        (OURS, 0.8, "loss and gradients"),
        (OURS, 0.0, "loss"),
        *((n, 0.0, "loss and gradients") for n in ("eager", "torch.compile", "Liger-Kernel")),
    ):
        of_line = rows[(rows["implementation"] == name) & (rows["ignored"] == ignored) & (rows["mode"] == mode)]
        times = of_line.set_index("shape")[["host_ms", "ms"]].to_dict(
            "index"
        )  # of some heads not every line is measured
        cells = [f"{times[s]['host_ms']:.1f}, {times[s]['ms']:.1f}" if s in times else "" for s in shapes]
        label = name + (", 80 % ignored" if ignored else "") + (", loss only" if mode == "loss" else "")
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def statistics(data: Path) -> str:
    """What the statistics of a head cost beside the loss-only forward."""
    rows: Any = pd.read_csv(data / "statistics.csv")
    rows = rows[rows["softcap"].isna() & (rows["temperatures"] > 0)].set_index("temperatures")
    device = json.loads((data / "statistics.json").read_text(encoding="utf-8"))["device"]
    return wrapped(
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
    lines = [wrapped(where), "", head, "|---|---|---|---|"]
    for row in rows[(rows["label_smoothing"] == 0.1) & rows["softcap"].isna()].itertuples():
        shape = f"{row.tokens} x {row.vocab_size} x {row.hidden_size}"
        lines.append(f"| {shape} | {row.time_ratio:.2f} | {row.chunked_peak_mib} MiB | {row.eager_peak_mib} MiB |")
    return "\n".join(lines)


# Kind of storage in byte_codes.csv -> its name in the table, in its order.
_STORAGES = {
    "none, dz anew": "nothing kept",
    "softmax in bfloat16": "two bytes",
    "bytes": "one byte",
    "bytes, root 4, peaks of 64 columns": "one byte, of even steps (not ours)",
    "logits in bfloat16": "logits in bfloat16 (not ours)",
}


def byte_codes(data: Path) -> str:
    """Errors of the gradients by what is kept of the softmax."""
    rows: Any = pd.read_csv(data / "byte_codes.csv").set_index(["storage", "data"])
    config = json.loads((data / "byte_codes.json").read_text(encoding="utf-8"))["config"]
    kinds = list(dict.fromkeys(rows.index.get_level_values("data")))
    size = " x ".join(f"{config[name]:,}" for name in ("tokens", "vocab_size", "hidden_size"))
    where = (
        f"A simulation ({size}, smoothing {config['label_smoothing']:g}): errors against float64 of the input's "
        "gradient, the head's, and the head's rows that no token names, all rounded to bfloat16; from "
        "`paper_figures/data/byte_codes.csv`, made by `python -m kernel.benchmark.byte_codes`, which also compares "
        "other codes. At an *optimum* $p_y = 0.9$ and the other logits differ by that many nats:"
    )
    lines = [wrapped(where), "", f"| kept | {' | '.join(kinds)} |", "|---|" + "---|" * len(kinds)]
    errors = ("input_gradient_error", "weight_gradient_error", "rows_without_target_error")
    for storage, name in _STORAGES.items():
        cells = [", ".join(f"{rows.loc[storage, kind][error]:.2g}" for error in errors) for kind in kinds]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


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


def parallel(data: Path) -> str:
    """A head split over the processes of a group against one process."""
    rows: Any = pd.read_csv(data / "parallel.csv")
    about = json.loads((data / "parallel.json").read_text(encoding="utf-8"))
    one, even, *others = rows["implementation"].unique()
    rival = others[-1]
    labels = [name.removeprefix("process_group, ") for name in (one, even, *others)]
    head = f"| tokens x vocabulary x hidden | softcap | {' | '.join(labels)} |".replace(rival, f"`{rival}`")
    lines = [head.replace(", no smoothing`", "`, no smoothing"), "|---|---|" + "---|" * len(labels)]
    sizes = ["tokens", "vocab_size", "hidden_size", "softcap"]
    for (*size, cap), case in rows.groupby(sizes, sort=False, dropna=False):
        found: Any = case.set_index("implementation").to_dict("index")
        cells = [" x ".join(map(str, size)), "off" if pd.isna(cap) else f"{cap:g}"]
        for name in (one, even, *others):
            row = found.get(name)
            cells.append(f"{row['ms']:.1f}, {row['peak_mib']:.0f}" if row else "")
            if name not in (one, rival):
                cells[-1] += f" ({found[one]['ms'] / row['ms']:.2f} x)"
        lines.append(f"| {' | '.join(cells)} |")
    memory = {name: rows[rows["implementation"] == name]["head_gradient_mib"].to_numpy() for name in (one, even)}
    off = rows[~rows["implementation"].isin([one, rival])][["input_gradient_difference", "weight_gradient_difference"]]
    near = _least_error(data, rows["shape"].iloc[0])
    if off.max().max() >= near:
        raise ValueError(
            f"parallel.csv differs from one process by more than {near:.4f}: write docs/kernel_tables.py anew."
        )
    where = (
        f"On {rows['processes'].max()} {about['device']} joined by NVLink, {rows['dtype'].iloc[0]}, smoothing 0.1, "
        "loss and both gradients: ms, MiB beyond the gradients, and how many times as fast as one process; uneven "
        "slices have a third and two thirds of the rows; from `paper_figures/data/parallel.csv`, made by "
        f"`{about['command'].removesuffix(' --processes 2')}`:"
    )
    told = (
        f"With even slices a process holds {(memory[even] / memory[one]).max():g} of the head's gradient. Calls repeat "
        f"{'bit for bit' if rows['repeats_bitwise'].all() else 'NOT bit for bit'}, mean losses are one process's "
        f"{'to the last bit' if rows['loss_difference'].max() == 0 else 'but for rounding'}. Gradients differ from its "
        f"own by at most {off.max().max():.4f}, both being rounded to bfloat16, which is less than the {near:.4f} by "
        f"which those of the default at {rows['shape'].iloc[0]} differ from float64. The exchange of log-partitions "
        f"takes up to {rows['gather_ms'].max():.3f} ms, the sum of the hidden states' gradients, beside the last "
        f"products, up to {rows['sum_ms'].max():.2f} ms."
    )
    return "\n".join([wrapped(where), "", *lines, "", wrapped(told)])


def _least_error(data: Path, shape: str) -> float:
    """The smaller error against float64 of the default's two gradients."""
    from kernel.benchmark.results import Table, read

    table = Table(read(data / "kernel.csv"))
    errors = [table.number(shape, OURS, f"{side}_gradient_error") for side in ("input", "weight")]
    return min(error for error in errors if error is not None)


def scale(data: Path) -> str:
    """Time and memory as tokens and vocabulary grow."""
    rows: Any = pd.read_csv(data / "scale.csv")
    about = json.loads((data / "scale.json").read_text(encoding="utf-8"))
    versions, config = about["versions"], about["config"]
    first, chosen = rows.iloc[0], config["workspace_bytes"]
    workspace = "default workspace" if chosen is None else f"{chosen // 2**20} MiB workspace"
    where = (
        f"On one {about['device']} ({first['dtype']}, hidden size {first['hidden_size']}, smoothing "
        f"{config['label_smoothing']:g}, {workspace}, torch "
        f"{versions['torch']}, Triton {versions['triton']}, commit `{about['commit'][:12]}`), loss and both gradients; "
        "the slope is that of log time over log size since the row before, 1 where time is linear; from "
        "`paper_figures/data/scale.csv`, made by `python -m kernel.benchmark.scale`:"
    )
    head = "| tokens | vocabulary | ms | in t_mm | slope | MiB beyond the gradients |"
    lines = [wrapped(where), "", head, "|---|---|---|---|---|---|"]
    for row in rows.itertuples():
        slope = "" if pd.isna(row.slope) else f"{row.slope:.2f}"
        cells = (f"{row.tokens:,}", f"{row.vocab_size:,}", f"{row.ms:.2f}", f"{row.t_mm:.2f}", slope)
        lines.append(f"| {' | '.join(cells)} | {row.beyond_mib:.0f} |")
    tokens, classes = (rows[rows["grows"] == name] for name in ("tokens", "vocab_size"))
    is_linear = ~(tokens["slope"] > _LINEAR).cummax()  # up to there
    linear, beyond = tokens[is_linear], tokens[~is_linear]
    of_classes, of_tokens, per_product = classes["t_mm"], linear["t_mm"], tokens["ms_per_product"]
    further = f"the slope never above {linear['slope'].max():.2f}"
    if len(beyond):
        further = (
            f"and no further: {listed(beyond['t_mm'], '.1f')} t_mm at {listed(beyond['tokens'], ',')} tokens, with "
            f"slopes up to {beyond['slope'].max():.2f}"
        )
    told = (
        f"Time is linear in the vocabulary: {of_classes.max():.2f} to {of_classes.min():.2f} t_mm up to "
        f"{classes['vocab_size'].max():,} classes, the slope never above {classes['slope'].max():.2f}. In the tokens "
        f"it is up to {linear['tokens'].max():,}, at {of_tokens.min():.2f} to {of_tokens.max():.2f} t_mm, {further}. "
        f"For each 10^12 multiplications of one product (N V D) it takes {per_product.iloc[0]:.0f} ms at "
        f"{tokens['tokens'].min():,} tokens, {per_product.min():.0f} at best and "
        f"{per_product.iloc[-1]:.0f} at {tokens['tokens'].max():,}."
    )
    return "\n".join([*lines, "", wrapped(told)])


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
    lines = [wrapped(where), "", "| loss | smoothing | checkpointing | peak memory | time |", "|---|---|---|---|---|"]
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
