# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 06 · What does instruction tuning do to calibration, and what does smoothing do about it?
#
# Pretrained language models are often well calibrated; after instruction tuning they are over-confident, and label
# smoothing *during* the tuning is said to prevent it. On real text the truth is unknown and every error is an
# estimate. So here is the same story in small, with a world whose conditionals are known: **how does the true
# calibration error move through tuning, and is smoothing the best remedy?**

# %%
import copy

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

import analysis
from analysis.calibration import CalibrationState, true_calibration_error
from analysis.notebook import committed_table, explore, look
from analysis.plots import reliability_diagram
from analysis.study.s7_world import Model, World
from kernel import head_statistics

torch.set_num_threads(1)  # the models here are small
look()

# %% [markdown]
# ## 1 · A world with a known truth
#
# Contexts $x \in \mathbb R^{24}$ and 128 tokens. On the **broad** distribution (pretraining),
# $x \sim \mathcal N(0, I)$ and the token follows a softmax of smooth random functions of $x$ under Zipf frequencies:
# several answers are possible. The **shifted** distribution (instructions) lies around a distant centre; half of what
# decides the token there are the broad functions, half are new ones, and it is four times as sharp: nearly always one
# answer.

# %%
V, D = 128, 64
world = World(V, seed=0)
streams = analysis.teachers.random_streams(0, 5)  # every part its own randomness: changing one changes no other
new = {
    name: world.draw(1_500, shifted=name == "shifted", generator=stream)
    for name, stream in zip(("broad", "shifted"), streams, strict=False)
}
examples = world.draw(512, shifted=True, generator=streams[2])  # what there is to tune on

fig, ax = plt.subplots(figsize=(7, 2.4))
for name, batch in new.items():
    best = batch.conditionals.max(-1).values.numpy()
    ax.hist(best, bins=np.linspace(0, 1, 31), histtype="step", lw=1.5, label=f"{name}, mean {best.mean():.2f}")
ax.set(xlabel="true probability of the best token", ylabel="contexts", xlim=(0, 1))
ax.legend(loc="upper center")
plt.show()

# %% [markdown]
# ## 2 · Pretrain, then tune
#
# The model is a perceptron, RMSNorm and a linear head, trained through `kernel.linear_cross_entropy`. Pretraining
# sees new contexts at every step. Tuning sees the same 512 examples, once an epoch, with one sampled token each.

# %%
pretrained = Model(V, D, seed=1_000)
optimiser = torch.optim.Adam(pretrained.parameters(), lr=3e-3)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 600)
for _ in range(600):
    batch = world.draw(512, shifted=False, generator=streams[3])
    optimiser.zero_grad()
    pretrained.loss(batch.inputs, batch.tokens).backward()
    optimiser.step()
    schedule.step()


def tune(label_smoothing, epochs=32, step_size=1e-3):
    """The tuned model, and true errors on new contexts after 0, 1, 2, 4, ... epochs."""
    model, order, lines = copy.deepcopy(pretrained), torch.Generator().manual_seed(0), []
    optimiser = torch.optim.Adam(model.parameters(), lr=step_size)
    for epoch in range(epochs + 1):
        if epoch & (epoch - 1) == 0 or epoch == epochs:  # 0 and the powers of two
            lines += [{"b": label_smoothing, "epoch": epoch, "on": name, **scores(model, new[name])} for name in new]
        if epoch == epochs:
            return model, pd.DataFrame(lines)
        for rows in torch.randperm(len(examples.tokens), generator=order).split(64):
            optimiser.zero_grad()
            model.loss(examples.inputs[rows], examples.tokens[rows], label_smoothing=label_smoothing).backward()
            optimiser.step()
    raise ValueError(f"epochs must be at least 0, got {epochs}.")


def scores(model, batch):
    p = model.logits(batch.inputs).softmax(-1)
    confidence, prediction = p.max(-1)
    accuracy = batch.conditionals.gather(-1, prediction.unsqueeze(-1)).mean().item()
    error = true_calibration_error(p, batch.conditionals, n_bins=15)
    return {"true error": error, "confidence": confidence.mean().item(), "accuracy": accuracy}


tuned = {b: tune(b) for b in (0.0, 0.1, 0.2)}
course = pd.concat([lines for _, lines in tuned.values()])

fig, axes = plt.subplots(1, 2, sharey=True, figsize=(7, 3))
for ax, (name, rows) in zip(axes, course.groupby("on", sort=False), strict=True):
    for (b, line), style in zip(rows.groupby("b"), ("o-", "s--", "^-."), strict=True):
        ax.plot(line["epoch"] + 1, line["true error"], style, label=f"b = {b:g}")
    ax.set(xscale="log", xlabel="epochs of tuning", title=f"new {name} contexts", ylim=(0, None))
    ax.set(xticks=[1, 2, 3, 5, 9, 17, 33], xticklabels=[0, 1, 2, 4, 8, 16, 32])
    ax.minorticks_off()
axes[0].set_ylabel("true calibration error")
axes[0].legend()
plt.show()

# %%
errors = course.set_index(["on", "b", "epoch"])["true error"].sort_index()
assert errors["broad", 0.0, 32] > 3 * errors["broad", 0.0, 0]  # tuning spoils what pretraining had calibrated
assert errors["shifted", 0.0, 32] > errors["shifted", 0.0].loc[1:].min()  # and on its own task it over-fits in the end
assert errors["shifted", 0.1, 32] < errors["shifted", 0.0, 32]  # smoothing lessens both
assert errors["broad", 0.1, 32] < errors["broad", 0.0, 32]
assert errors["shifted", 0.2, 8] > errors["shifted", 0.0, 8] + 0.01  # and does harm before there is any to cure
course.query("epoch == 32").drop(columns="epoch").set_index(["on", "b"]).round(3)

# %% [markdown]
# Tuning makes the model over-confident where it had been calibrated (broad). On the new task it first repairs the
# calibration, as the pretrained model knew nothing of it, and spoils it again as the examples are learnt by heart.
# Smoothing lessens the damage on both and leaves the accuracy alone. It does not undo it; and on the new task, in the
# epochs before over-fitting sets in, much smoothing is harm: the model becomes *under*-confident.
#
# ## 3 · The reliability diagrams
#
# Before, after, and after with smoothing, on new shifted contexts (sampled tokens, as one would have in practice).
# Dashed: the ceiling that the norms of the tuned head allow every token at once; dotted: the confidence that
# smoothing asks for.


# %%
def state(model, batch):
    confidence, prediction = model.logits(batch.inputs).softmax(-1).max(-1)
    return CalibrationState().update(confidence, prediction == batch.tokens)


@torch.no_grad()
def ceiling(model):
    """Proven ceiling of the confidence in every token, from the norms of head and features."""
    head = analysis.HeadGeometry.measure(model.head, model.eval().hidden(new["shifted"].inputs))
    return float(analysis.confidence_cap(head.norm_product, V, D).confidence)


stages = {"before tuning": (pretrained, 0.0), "tuned": (tuned[0.0][0], 0.0), "tuned, b = .1": (tuned[0.1][0], 0.1)}
fig, axes = plt.subplots(1, 3, sharey=True, figsize=(8, 3.2))
for ax, (name, (model, b)), color in zip(axes, stages.items(), ("0.4", "C0", "C1"), strict=True):
    asked = float(analysis.optimal_confidence(b, V)) if b else None
    reliability_diagram(state(model, new["shifted"]), ax, color=color, ceiling=ceiling(model), smoothing_optimum=asked)
    ax.set(title=f"{name}\ntrue error {scores(model, new['shifted'])['true error']:.3f}", xticks=(0, 0.5, 1))
    ax.set_ylabel("accuracy" if ax is axes[0] else "")
handles, labels = axes[2].get_legend_handles_labels()
fig.legend(handles, labels, loc="outside lower center", ncols=3)
plt.show()

# %% [markdown]
# The ceiling lies at the right edge: nothing in the norms of this head holds its confidence back. What holds it back
# is that tuning stops. Here is a limit of the activity index ([notebook 02](02_when_does_smoothing_act.ipynb)), which
# is about heads trained to the end. On the tuning examples, where this run stops and much later:


# %%
@torch.no_grad()
def activity(model):
    """Activity index on the tuning examples, and H - CE: how fast their loss falls as the logits are scaled up."""
    of = head_statistics(model.eval().hidden(examples.inputs), model.head, examples.tokens)
    losses = analysis.losses_of(of)
    return float(analysis.activity_index(*losses, 0.1)), losses.entropy - losses.cross_entropy


indices = {32: activity(tuned[0.0][0]), 128: activity(tune(0.0, epochs=128)[0])}
for epochs, (index, slope) in indices.items():
    print(f"plain, {epochs:>3} epochs: A = {index:.2f}, H - CE = {slope:.2f} nats")
fall = course.query("epoch == 32 and on == 'shifted'").set_index("b")["confidence"].diff()[0.1]
print(f"after 32 epochs smoothing .1 has moved the confidence by {fall:.3f}")
assert indices[32][0] > 1 > indices[128][0]
assert fall < -0.03

# %% [markdown]
# After 32 epochs the plain model would still gain from larger logits ($H - CE > 0$), so $A > 1$; yet smoothing has
# slowed their growth all along, and the two models differ. Where training is stopped and not finished, $A > 1$ does
# not promise that smoothing does nothing.

# %% [markdown]
# Tune one of your own:


# %%
def own(label_smoothing=0.1, epochs=16, step_size=1e-3):
    model, lines = tune(label_smoothing, epochs, step_size)
    last = lines[lines["epoch"] == epochs].set_index("on")["true error"]
    _, ax = plt.subplots(figsize=(3.6, 3.4))
    reliability_diagram(state(model, new["shifted"]), ax, color="C1")
    ax.set_title(f"true error {last['shifted']:.3f} on shifted, {last['broad']:.3f} on broad", fontsize="small")
    plt.show()


explore(own, label_smoothing=(0.0, 0.4, 0.05), epochs=[1, 2, 4, 8, 16, 32, 64], step_size=[3e-4, 1e-3, 3e-3])

# %% [markdown]
# ## 4 · Against the rivals, over seeds and sizes
#
# One run proves nothing. The study repeated this for vocabularies of 256 to 4,096, hidden sizes of 8 to 256 and five
# seeds, with the remedies that smoothing competes with: weight decay, dropout, stopping early (at the least loss on 256
# validation examples), a temperature fitted afterwards on the same 256, and smoothing with its targets inverted
# afterwards. From the committed table `S7`: the true error at the end of tuning, on new shifted contexts; bars from the
# smallest to the largest seed (mean over the sizes).

# %%
table = committed_table("S7").query("converged")
shifted = table[table["distribution"] == "shifted"]
last = shifted[shifted["epoch"] == shifted["epoch"].max()]
model_of = ["vocab_size", "hidden_size", "data_seed"]
plain = shifted[(shifted["method"] == "b=0") & (shifted["reading"] == "as_trained") & (shifted["epoch"] > 0)]
trained = last[last["reading"] == "as_trained"].set_index("method")
ways = {
    "nothing": trained.loc["b=0"],
    "dropout": trained.loc["dropout"],
    "weight decay": trained.loc["weight_decay"],
    "early stopping": plain.loc[plain.groupby(model_of)["validation_nll"].idxmin()],
    "temperature afterwards": last[(last["reading"] == "post_hoc") & (last["method"] == "b=0")],
    "smoothing, b = .05": trained.loc["b=0.05"],
    "smoothing, b = .1": trained.loc["b=0.1"],
    "the same, inverted": last[(last["reading"] == "inverted") & (last["method"] == "b=0.1")],
    "smoothing, b = .2": trained.loc["b=0.2"],
}
columns = {"true_ece": "true calibration error", "true_nll": "true NLL (nats)", "accuracy": "accuracy"}
by_seed = pd.concat(
    {name: rows.groupby("data_seed")[list(columns)].mean() for name, rows in ways.items()}, names=["way"]
)
result = by_seed.groupby("way", sort=False).agg(["mean", "min", "max"])

positions = np.arange(len(result))[::-1]
colors = ["C1" if name.startswith(("smoothing", "the same")) else "C0" for name in result.index]
fig, axes = plt.subplots(1, 3, sharey=True, figsize=(8, 3.2))
for ax, (column, label) in zip(axes, columns.items(), strict=True):
    ax.axvline(result.loc["nothing", (column, "mean")], color="0.8", lw=0.8, zorder=0)
    ax.hlines(positions, result[column, "min"], result[column, "max"], color=colors, lw=1.2)
    ax.scatter(result[column, "mean"], positions, c=colors, s=22, zorder=3)
    ax.set_xlabel(label)
axes[0].set_yticks(positions, result.index)
axes[0].set_xlim(left=0)
inside = result["true_nll"].drop("the same, inverted")
axes[1].set_xlim(inside["min"].min() - 0.05, inside["max"].max() + 0.15)
worst = result.loc["the same, inverted", ("true_nll", "mean")]
axes[1].text(0.97, 1, f"{worst:.1f} →", color="C1", ha="right", va="center", transform=axes[1].get_yaxis_transform())
plt.show()

# %%
error = result["true_ece", "mean"]
assert error["smoothing, b = .2"] < error["smoothing, b = .1"] < error["smoothing, b = .05"] < error["nothing"]
assert error["temperature afterwards"] < error["smoothing, b = .1"]
assert error["the same, inverted"] > error["smoothing, b = .1"]
assert error["early stopping"] < error["smoothing, b = .1"] - 0.02
assert abs(error["weight decay"] - error["smoothing, b = .1"]) < 0.02
assert np.ptp(result.loc[["nothing", "smoothing, b = .1", "smoothing, b = .2"], ("accuracy", "mean")]) < 0.01
pd.set_option("display.max_colwidth", None)
verdict = committed_table("verdicts").set_index("claim").loc[["K1", "K2", "K9"]]
verdict[["statement", "verdict", "mean", "low", "high"]].round(3)

# %% [markdown]
# ## What was learnt
#
# - Tuning on few, repeated, nearly deterministic examples makes a calibrated model over-confident, most of all away
#   from the new task.
# - Smoothing lessens that without costing accuracy, by the end the more the larger $b$ within the range tried.
#   Nothing in the norms holds the model back here; that $A > 1$ halfway does not protect it from smoothing.
# - "Depends on" for K1: on the distribution. On the new one the error of one of seven models does not grow from the
#   first epoch on. "Depends on" for K2: on how far confidence exceeds accuracy. Heads that are calibrated, or
#   over-confident by less than half of what smoothing takes, are made worse by it in other experiments of the study.
# - On calibration alone it has strong rivals: a temperature fitted afterwards on a few examples and early stopping do
#   more than $b = 0.1$ (the latter at some accuracy), weight decay about as much, dropout less. The first two need
#   further data; smoothing, weight decay and dropout do not.
# - Inverting the smoothed targets afterwards, right for a calibrated model, brings back part of the over-confidence
#   here, and gives probability 0 to tokens that do occur (its NLL is off the scale).
#
# **Not shown:** language. Contexts are Gaussian vectors, one token is predicted, and the vocabularies have at most
# 4,096. What a real model does under tuning is a measurement of its own: [07](07_audit_and_tune_a_real_model.ipynb).
#
# **More:** [docs/study_notes.md](../docs/study_notes.md) on S7, including what was not blind about it, and on K8
# (diversity of features). This world on your machine, in small: `python -m analysis.study run S7 --preset quick`.
