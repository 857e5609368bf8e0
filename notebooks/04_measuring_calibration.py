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
# # 04 · Is a measured calibration error real?
#
# A model is calibrated if, among the predictions made with confidence $c$, a share $c$ is right. The usual estimate,
# the expected calibration error (ECE), sorts confidences into bins and averages
# $|\text{confidence} - \text{accuracy}|$. It has a bias, a sampling error, and pitfalls in common libraries. The
# question: **when may one believe such a number?**
#
# The way to find out: synthetic language models whose true conditionals are known, so that the true error is known
# too.

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

import analysis
from analysis.calibration import CalibrationState, calibration_error, true_calibration_error, true_decomposition
from analysis.notebook import committed_table, explore, look
from analysis.plots import reliability_diagram
from analysis.teachers import TeacherConfig, make_teacher

look()

# %% [markdown]
# ## 1 · A model whose error is known
#
# The truth: 4,000 contexts with smooth conditionals over 64 tokens. The models: the truth itself, the truth sharpened
# by a temperature (over-confident), the truth smoothed as label smoothing would teach it (under-confident), and one
# that ignores the context and gives every token its frequency. `true_calibration_error` compares with the
# conditionals; no label is sampled.

# %%
config = TeacherConfig(kind="lowrank", vocab_size=64, n_contexts=4_000, logit_std=2.5)
teacher = make_teacher(config, torch.Generator().manual_seed(0))
truth = teacher.conditionals(slice(None))
models = {
    "the truth": truth,
    "sharpened, T = .7": (truth.log() / 0.7).softmax(-1),
    "smoothed, b = .1": torch.from_numpy(analysis.smooth(truth.numpy(), 0.1)),
    "token frequencies": truth.mean(0).expand_as(truth),
}
known = []
for name, p in models.items():
    split = true_decomposition(p, truth)
    known.append(
        {
            "model": name,
            "confidence": p.max(-1).values.mean().item(),
            "true ECE": true_calibration_error(p, truth),
            "true ECE, 15 bins": true_calibration_error(p, truth, n_bins=15),
            "error per context": true_calibration_error(p, truth, given="context"),
            "NLL": split.nll,
            "of this calibration": split.nll_calibration,
        }
    )
known = pd.DataFrame(known).set_index("model")
predicted = float(analysis.smoothed_calibration_error(truth.numpy(), 0.1))  # b (E max p - 1/V)
assert abs(known.loc["smoothed, b = .1", "true ECE"] - predicted) < 1e-9
assert known.loc["token frequencies", "true ECE"] < 1e-9 < known.loc["token frequencies", "error per context"]
known.round(4)

# %% [markdown]
# (No two contexts share a confidence in the first three models, so the error given the confidence is the error per
# context.) Two things to see. Smoothing a *calibrated* model makes it under-confident by exactly
# $b\,(E\max_k p_k - 1/V)$. And a model that ignores its input is perfectly calibrated: calibration says nothing about
# being good, so that an ECE without the NLL or the accuracy beside it is worth little.
#
# ## 2 · What a finite sample makes of it
#
# In practice there are $n$ labels. Even a perfectly calibrated model then shows an error: the accuracy of a bin with
# $n_b$ samples fluctuates by $\sqrt{a(1-a)/n_b}$, and the absolute value makes every fluctuation count. This **noise
# floor** depends on the confidences alone and can be computed (`noise_floor`, the error that a calibrated model of
# these confidences would show). It also biases the plug-in estimate of a model with a real error; `debiased=True`
# subtracts an estimate of that bias.


# %%
def outcomes(p):
    """Confidence and true accuracy of every context."""
    confidence, prediction = p.max(-1)
    return confidence.numpy(), truth.gather(-1, prediction.unsqueeze(-1)).squeeze(-1).numpy()


def sample(p, n, rng):
    """n predictions: confidences, and whether they were right."""
    confidence, accuracy = outcomes(p)
    context = rng.integers(len(confidence), size=n)
    return confidence[context], rng.random(n) < accuracy[context]


sizes = np.array([100, 300, 1_000, 3_000, 10_000, 30_000])
rng = np.random.default_rng(0)
lines = []
for name in ("the truth", "sharpened, T = .7"):
    for n in sizes:
        for _ in range(30):
            drawn = sample(models[name], n, rng)
            floor = CalibrationState().update(*drawn).noise_floor(n_resamples=100).mean
            plug_in, debiased = (calibration_error(*drawn, debiased=choice) for choice in (False, True))
            lines.append({"model": name, "n": n, "plug-in": plug_in, "debiased": debiased, "noise floor": floor})
estimates = pd.DataFrame(lines)

fig, axes = plt.subplots(1, 2, sharey=True, figsize=(7, 3.2))
for ax, (name, rows) in zip(axes, estimates.groupby("model", sort=False), strict=True):
    by_size = rows.drop(columns="model").groupby("n")
    for column, color, style in (("plug-in", "C0", "o-"), ("debiased", "C2", "s--"), ("noise floor", "0.6", "-")):
        middle, low, high = by_size[column].mean(), by_size[column].quantile(0.05), by_size[column].quantile(0.95)
        ax.plot(sizes, middle, style, color=color, label=column)
        if column != "noise floor":
            ax.fill_between(sizes, low, high, color=color, alpha=0.15, lw=0)
    ax.axhline(known.loc[name, "true ECE, 15 bins"], color="k", lw=1, ls=":", label="true error")
    ax.set(xscale="log", xlabel="samples $n$", title=name, ylim=(-0.005, 0.24))
axes[0].set_ylabel("expected calibration error")
axes[0].legend()
plt.show()

# %%
means = estimates.groupby(["model", "n"])[["plug-in", "debiased", "noise floor"]].mean()
calibrated = means.loc["the truth"]
assert np.allclose(calibrated["plug-in"], calibrated["noise floor"], rtol=0.15)  # what looks like an error is noise
print(f"a perfectly calibrated model shows an ECE of {calibrated.loc[300, 'plug-in']:.3f} on 300 samples")

# %% [markdown]
# An ECE near the noise floor is no evidence of miscalibration, and "model A has 0.06, model B has 0.05" on a few
# hundred questions is no comparison. Debiasing helps where the error is real; on a calibrated model the estimate
# cannot be negative, so some bias remains.
#
# ## 3 · The picture to draw
#
# Every number above is hidden in a reliability diagram without intervals. This one draws the Wilson interval of each
# accuracy and, in grey, where the points of a calibrated model of these confidences would lie. Move the sample size
# and the sharpness.


# %%
def diagram(samples=1_000, temperature=0.7, smoothing=0.0):
    p = torch.from_numpy(analysis.smooth((truth.log() / temperature).softmax(-1).numpy(), smoothing))
    state = CalibrationState().update(*sample(p, samples, np.random.default_rng(1)))
    interval = state.interval(n_resamples=300)
    _, ax = plt.subplots(figsize=(4.2, 3.8))
    reliability_diagram(state, ax, label="model")
    true, floor = true_calibration_error(p, truth, n_bins=15), state.noise_floor(n_resamples=300).mean
    ax.set_title(
        f"n = {state.n:,}: ECE {interval.error:.3f}, 95 % interval [{interval.low:.3f}, {interval.high:.3f}]\n"
        f"noise floor {floor:.3f}, true error {true:.3f}",
        fontsize="small",
    )
    ax.legend(loc="upper left")
    plt.show()


explore(diagram, samples=[100, 300, 1_000, 10_000, 100_000], temperature=(0.5, 1.5, 0.05), smoothing=(0.0, 0.3, 0.05))

# %% [markdown]
# ## 4 · Intervals that cover
#
# A bootstrap of the plug-in error inherits its bias: for a calibrated model it lies wholly above the truth, which is
# 0. `CalibrationState.interval` is built around the debiased error, and reaches down to 0 where the test against the
#    noise floor does not reject calibration. Forty data sets of 1,000 samples each:


# %%
def intervals(name, count=40, n=1_000):
    rng = np.random.default_rng(2)
    lines = []
    for _ in range(count):
        confidence, correct = sample(models[name], n, rng)
        ours = CalibrationState().update(confidence, correct).interval(n_resamples=200)
        picks = rng.integers(n, size=(200, n))
        naive = np.quantile([calibration_error(confidence[i], correct[i]) for i in picks], [0.025, 0.975])
        lines.append({"low": ours.low, "high": ours.high, "naive low": naive[0], "naive high": naive[1]})
    return pd.DataFrame(lines)


fig, axes = plt.subplots(1, 2, sharey=True, figsize=(7, 3.4))
covered = {}
for ax, name in zip(axes, ("the truth", "sharpened, T = .7"), strict=True):
    true, table = known.loc[name, "true ECE, 15 bins"], intervals(name)
    rows = np.arange(len(table))
    for prefix, shift, color, label in (("", 0.0, "C0", "package"), ("naive ", 0.4, "C1", "naive bootstrap")):
        low, high = table[f"{prefix}low"], table[f"{prefix}high"]
        ax.hlines(rows + shift, low, high, color=color, lw=1.2, label=label)
        covered[name, label] = f"{((low <= true + 1e-12) & (true <= high)).sum()} of {len(table)}"
    ax.axvline(true, color="k", lw=1, ls=":")
    ax.set(xlabel="95 % interval of the ECE", title=name, yticks=[])
axes[0].set_ylabel("data sets")
fig.legend(*axes[1].get_legend_handles_labels(), loc="outside upper right", ncols=2)
plt.show()
pd.Series(covered, name="intervals that hold the true error").unstack()

# %% [markdown]
# Forty are few. The committed table `coverage` holds 2,000 data sets for each of many cases:

# %%
coverage = committed_table("coverage")
assert coverage["coverage"].between(0.92, 0.985).all()
coverage.groupby(["accuracy", "norm"])["coverage"].agg(["min", "max"]).unstack("norm").round(3)

# %% [markdown]
# ## 5 · Traps, live
#
# **Confidence 1.0.** In float32 an over-confident head saturates. The definition puts 1.0 into the last bin;
# torchmetrics opens one more bin for it, and errors of opposite sign no longer cancel.

# %%
from torchmetrics.functional.classification import binary_calibration_error

logits = 30 * torch.randn(2_000, 64, generator=torch.Generator().manual_seed(0))
saturated = (logits.softmax(-1).max(-1).values == 1).double().mean()
print(f"exactly 1.0 in float32: {saturated:.0%} of the confidences of a sharp head")

confidence = torch.tensor([1.0] * 50 + [0.96] * 50, dtype=torch.float64)
correct = torch.tensor([1] * 46 + [0] * 4 + [1] * 50)
theirs = binary_calibration_error(confidence, correct, n_bins=15, norm="l1").item()
print(f"15 bins by definition {calibration_error(confidence, correct):.3f}, torchmetrics {theirs:.3f}")

# %% [markdown]
# **Logits or probabilities?** torchmetrics guesses from the values: one confidence that rounding put a hair above 1,
# and a sigmoid is applied to the whole batch.

# %%
confidence, correct = (torch.from_numpy(x) for x in sample(models["the truth"], 5_000, np.random.default_rng(3)))
nudged = confidence.clone()
nudged[0] = 1 + 1e-7
for name, values in (("as they are", confidence), ("one of them 1 + 1e-7", nudged)):
    theirs = binary_calibration_error(values, correct.int(), n_bins=15, norm="l1").item()
    print(f"{name:>22}: torchmetrics {theirs:.3f}, this package {calibration_error(values, correct):.3f}")

# %% [markdown]
# **Counting in float32.** Language models make many predictions. A float32 counter stops at $2^{24}$, and a mean over
# more than that many samples is wrong without a warning. (`CalibrationState` counts in int64 and sums in float64.)

# %%
counter = torch.tensor(2.0**24)
print(f"2^24 + 1 in float32: {int(counter + 1) - 2**24} more than 2^24")

# %% [markdown]
# **Bins that vanish.** scikit-learn's `calibration_curve` drops empty bins and returns no counts, so that an ECE
# cannot be computed from it: the unweighted mean over its bins is another quantity.

# %%
from sklearn.calibration import calibration_curve

c, y = sample(models["sharpened, T = .7"], 300, np.random.default_rng(4))
share, mean = calibration_curve(y, c, n_bins=15)
unweighted = np.abs(share - mean).mean()
print(f"{len(mean)} of 15 bins come back; unweighted mean {unweighted:.3f}, ECE {calibration_error(c, y):.3f}")

# %% [markdown]
# **RMS calibration error over bins of 100.** With a fixed number of samples in a bin, more data never lower the
# noise:

# %%
floors = {
    n: analysis.calibration.sorted_rms_error(*sample(models["the truth"], n, np.random.default_rng(5)))
    for n in (1_000, 100_000)
}
pd.DataFrame(floors, index=["measured on the truth", "its noise floor"]).rename_axis(columns="samples").round(4)

# %% [markdown]
# ## What was learnt
#
# - An ECE is believable when it stands clear of its noise floor and comes with an interval. With a few hundred
#   samples, differences in the second decimal mean nothing.
# - Calibration is not quality: a model without input is calibrated. Put accuracy and NLL beside it.
# - Label smoothing makes a calibrated model under-confident, by a known amount. It can only help one that is
#   over-confident.
# - Check what a library does with 1.0, with values near 1, with empty bins and with many samples.
#
# **Not shown:** dependent samples (tokens of one text are not independent; intervals are then too short), the choice
# of binning on heavily peaked confidences (`binning="quantile"`), and calibration of the full distribution
# (`kind="canonical"`) or of answer options.
#
# **Next:** [05](05_the_kernel_in_a_training_loop.ipynb) trains with the smoothed loss;
# [06](06_simulated_instruction_tuning.ipynb) uses these measurements on a tuning whose truth is known. From hidden
# states and a head, without logits: `kernel.head_statistics` and `analysis.calibration.from_statistics`.
