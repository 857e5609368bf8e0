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
# # 03 · Do temperature and logit capping give smoothing its room back?
#
# [Notebook 02](02_when_does_smoothing_act.ipynb): under a norm budget, smoothing is inert until the norms reach the
# gap $G_{LS}$ that it asks for. Two remedies are in use: train at a temperature below 1, or cap the logits. The
# question: **which of them restores the effect of smoothing, under which conditions, and is a restored effect a
# better model?**
#
# "Capping" names two functions that do opposite things, and "temperature" can be applied in training or afterwards.
# They are kept apart here.

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

import analysis
from analysis.bottleneck import FitConfig, fit
from analysis.notebook import committed_table, explore, look
from analysis.teachers import TeacherConfig

torch.set_num_threads(1)  # the models here are small
look()
b = 0.1

# %% [markdown]
# ## 1 · Three functions of a logit
#
# - **Temperature** $z/T$ multiplies all logits by $1/T$.
# - The **contraction** $c\tanh(z/c)$, the softcap of Gemma 2, leaves small logits alone and keeps large ones below
#   $c$. Its slope is at most 1: differences can only shrink.
# - The **scaled tanh** $c\tanh(z)$ (`gain` in tables and labels) is the contraction after a multiplication by $c$:
#   $c\tanh(z) = c\tanh\bigl((c\,z)/c\bigr)$.
#
# On the right, what each allows: the largest gap that a head of norm product $m$ can give to every token at once
# (`softcap_gap`, proven for every head), against the gap that smoothing asks for.


# %%
def three(norm_product=6.0, vocab_size=256):
    z, strength = np.linspace(-8, 8, 300), np.geomspace(1, 20, 120)
    _, (left, right) = plt.subplots(1, 2, figsize=(7, 3.2))
    left.plot(z, z, color="0.7", lw=0.8)
    left.plot(z, 2 * z, label="$z/T$, T = 0.5")
    left.plot(z, 4 * np.tanh(z / 4), "--", label=r"$c\,\tanh(z/c)$, c = 4")
    left.plot(z, 4 * np.tanh(z), "-.", label=r"$c\,\tanh(z)$, c = 4")
    left.set(xlabel="raw logit $z$", ylabel="logit in the softmax", ylim=(-8, 8))
    left.legend(loc="upper left")
    right.plot(strength, analysis.max_gap(norm_product, vocab_size, temperature=1 / strength), label="$1/T$")
    right.plot(strength, analysis.softcap_gap(norm_product, vocab_size, strength), "--", label="$c$ of the contraction")
    right.plot(
        strength,
        analysis.softcap_gap(norm_product * strength, vocab_size, strength),
        "-.",
        label="$c$ of the gain form",
    )
    right.axhline(analysis.optimal_gap(b, vocab_size), color="0.4", lw=0.8)
    right.text(20, float(analysis.optimal_gap(b, vocab_size)) * 1.05, "$G_{LS}$", color="0.4", ha="right")
    right.set(
        xlabel="$1/T$, or $c$", ylabel="largest gap in every token (nats)", xscale="log", yscale="log",
        title=f"m = {norm_product:g}, V = {vocab_size:,}", xticks=(1, 2, 5, 10, 20), xticklabels=(1, 2, 5, 10, 20),
    )  # fmt: skip
    right.minorticks_off()
    right.set(yticks=(2, 5, 10, 20, 50, 100), yticklabels=(2, 5, 10, 20, 50, 100))
    right.legend()
    plt.show()


explore(three, norm_product=(1.0, 20.0, 1.0), vocab_size=[64, 256, 4_096, 262_144])

# %% [markdown]
# Temperature and scaled tanh raise the ceiling; the contraction lowers it, whatever $c$. Where the norms do not reach
# $G_{LS}$, it cannot help.
#
# ## 2 · Temperature in training, under a norm budget
#
# The wall stands at $mV/((V-1)T)$, so smoothing acts below $T^* = \frac{mV}{(V-1)\,G_{LS}}$. Lines are that theory,
# points trained heads.

# %%
V, m = 32, 3.5
teacher = TeacherConfig(kind="det", vocab_size=V, n_contexts=V)


def trained(smoothing, **options):
    """Row of one head of norm product m, trained to convergence on deterministic targets."""
    return fit(FitConfig(teacher=teacher, hidden_size=V, norm_coefficient=m / V, label_smoothing=smoothing, **options))


temperatures = np.array([0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0, 1.2])
line = np.linspace(0.28, 1.25, 200)
fig, ax = plt.subplots()
for smoothing, color, marker, size in ((0.0, "C0", "o", 5), (b, "C1", "s", 8)):
    gap = analysis.smoothing.optimal_gap_under_cap(m, V, smoothing, temperature=line)
    ax.plot(line, analysis.gap_to_confidence(gap, V), color=color, lw=1)
    reached = np.array([trained(smoothing, temperature=float(t))["confidence"] for t in temperatures])
    ax.plot(temperatures, reached, marker, color=color, ms=size, mfc="none", label=f"trained, b = {smoothing}")
    theory = analysis.smoothing.optimal_gap_under_cap(m, V, smoothing, temperature=temperatures)
    assert np.allclose(reached, analysis.gap_to_confidence(theory, V), atol=0.005)
threshold = float(analysis.restoring_temperature(m, V, b))
ax.axvline(threshold, color="0.7", lw=0.8)
ax.text(threshold + 0.01, 0.05, "$T^*$", color="0.4", transform=ax.get_xaxis_transform())
ax.set(xlabel="training temperature $T$", ylabel="mean confidence", title=f"m = {m}, V = D = {V}; lines: theory")
ax.legend()
plt.show()

# %% [markdown]
# ## 3 · Caps, under the same budget
#
# The same heads with caps. `rho` is the proven ratio of what is allowed to what is asked for: at most 1 proves that
# the asked gap is out of reach (above 1 it proves nothing under a cap).

# %%
arms = {
    "no cap": {},
    "T = 0.5": {"temperature": 0.5},
    "contraction, c = 10": {"softcap": 10.0},
    "contraction, c = 3": {"softcap": 3.0},
    "gain, c = 2": {"softcap": 2.0, "softcap_form": "gain"},
    "gain, c = 4": {"softcap": 4.0, "softcap_form": "gain"},
}
capped = pd.DataFrame(
    {"arm": name, **{key: row[key] for key in ("label_smoothing", "confidence", "effectiveness_ratio")}}
    for name, options in arms.items()
    for row in (trained(0.0, **options), trained(b, **options))
).pivot(index="arm", columns="label_smoothing")
capped = capped.loc[list(arms)]
fall = capped["confidence"][0.0] - capped["confidence"][b]
pd.DataFrame({"rho": capped["effectiveness_ratio"][b], "plain": capped["confidence"][0.0],
              "smoothed": capped["confidence"][b], "fall": fall}).round(3) + 0.0  # no minus before 0  # fmt: skip

# %%
assert fall[["no cap", "contraction, c = 10", "contraction, c = 3"]].abs().max() < 0.002  # inert
assert fall[["T = 0.5", "gain, c = 4"]].min() > 0.05  # restored

# %% [markdown]
# The contraction only makes both heads less sure. The scaled tanh restores smoothing *as a temperature $1/c$ would* as
# long as the $\tanh$ is not saturated.
#
# ## 4 · With noisy targets, and with free norms
#
# Is a restored effect a better model? The study trained heads on eight sampled tokens per context and measured the
# **true** calibration error, from the known conditionals, with every combination of training and reading. From its
# committed table `S5` ($V = 256$, $D = 64$, five seeds), under a norm budget, with free norms, and with a weight decay
# strong enough to hold the norms: for each way, the error of the plain head and of the smoothed one (mean of the seeds,
# bars from the smallest to the largest).

# %%
table = committed_table("S5").query(
    "teacher == 'lowrank' and vocab_size == 256 and optimiser == 'lbfgs' and features == 'free' and converged"
    " and confidence_penalty == 0"
)
regimes = {"norm budget": ("budget", 0.0, 6.4), "free norms": ("free", 0.0, 5.0), "weight decay": ("free", 0.2, 5.0)}


def ways(norm, weight_decay, cap):
    """(name, rows) of the ways to train and read, where this limits the norms."""
    rows = table[(table["norm"] == norm) & (table["weight_decay"] == weight_decay)]

    def pick(evaluation="as_trained", temperature=1.0, softcap=None, form="contraction"):
        fits = (
            (rows["temperature"] == temperature) & (rows["softcap_form"] == form) & (rows["evaluation"] == evaluation)
        )
        return rows[fits & (rows["softcap"].isna() if softcap is None else rows["softcap"] == softcap)]

    return {
        "no cap, T = 1": pick(),
        "T = 0.25 in training": pick(temperature=0.25),
        "T = 0.25 afterwards": pick("T=0.25"),
        "contraction, c = 5 (budget: 6.4)": pick(softcap=cap),
        "the same, removed after training": pick("plain", softcap=cap),
        "gain, c = 4": pick(softcap=4.0, form="gain"),
    }


def summary(named):
    errors = {
        name: rows.groupby("label_smoothing")["true_ece"].agg(["mean", "min", "max"]) for name, rows in named.items()
    }
    return pd.concat(errors, names=["way"])


fig, axes = plt.subplots(1, 3, sharex=True, sharey=True, figsize=(8, 3.2))
results = {name: summary(ways(*regime)) for name, regime in regimes.items()}
names = list(ways(*regimes["free norms"]))
positions = np.arange(len(names))[::-1]
for ax, (regime, result) in zip(axes, results.items(), strict=True):
    both = [result.xs(smoothing, level="label_smoothing") for smoothing in (0.0, b)]
    ax.hlines(positions, both[0]["mean"], both[1]["mean"], color="0.7", lw=2)
    for errors, color, marker, label in zip(both, ("C0", "C1"), "os", ("plain", f"smoothed, b = {b}"), strict=True):
        ax.hlines(positions, errors["min"], errors["max"], color=color, lw=1)
        ax.plot(errors["mean"], positions, marker, color=color, label=label)
    ax.set(title=regime, xlim=(0, 0.65), xticks=np.arange(0, 0.7, 0.2))
axes[1].set_xlabel("true calibration error")
axes[0].set_yticks(positions, names)
fig.legend(*axes[2].get_legend_handles_labels(), loc="outside upper right", ncols=2)
plt.show()

# %%
error = {name: result["mean"].unstack("label_smoothing") for name, result in results.items()}
gain = pd.DataFrame({name: table[0.0] - table[b] for name, table in error.items()})
budget, free, decay = (gain[name] for name in regimes)
contraction, removed = names[3:5]
assert budget["no cap, T = 1"] < 0.01 < 0.03 < budget["T = 0.25 in training"]  # restored by training at T
assert gain.loc["T = 0.25 afterwards"].abs().max() < 0.01  # but not by reading at T
assert budget[contraction] < 0.01
assert budget["gain, c = 4"] > 0 > budget["no cap, T = 1"]
assert abs(free["T = 0.25 in training"] - free["no cap, T = 1"]) < 0.01  # free norms: T is a reparametrisation
assert free[removed] > 0.3
assert error["free norms"].loc[removed, b] > error["free norms"].loc["no cap, T = 1", b]
assert decay["T = 0.25 in training"] > decay["no cap, T = 1"] + 0.02  # a weight decay is a budget
assert decay[contraction] < -0.02
gain.loc[names].round(3)

# %%
untouched, restored = (error["norm budget"].loc[way] for way in ("no cap, T = 1", "T = 0.25 in training"))
print(f"budget: plain at T = 1 {untouched[0.0]:.3f}; at T = 0.25 {restored[0.0]:.3f}, smoothed {restored[b]:.3f}")
plain, smoothed = error["free norms"].loc[removed, [0.0, b]]
print(f"free norms, cap removed after training: plain {plain:.3f}, smoothed {smoothed:.3f}")

# %% [markdown]
# Five readings (the table: plain minus smoothed error):
#
# 1. **Temperature in training** restores the effect under a budget, and changes nothing with free norms: there the
#    weights simply rescale. (It matters through what binds: norms, weight decay, step size.)
# 2. **Temperature afterwards** creates no effect where the two heads are equal: they stay equal at every temperature.
#    Where they nearly are, it enlarges the little they differ in.
# 3. **The contraction**, kept, restores nothing. *Removed after training* with free norms, at the $c$ shown, it leaves
#    raw logits far too large, and smoothing reduces that: an effect of smoothing, on an error that the cap itself has
#    made. At other $c$ it does less, or the opposite (at $c = 48$).
# 4. **Under weight decay** a training temperature raises the gain of smoothing, but not the fall in confidence: no
#    effect is restored. A contraction on top makes smoothing harmful.
# 5. **A restored effect need not be a better model.** Under this budget, training at $T = 0.25$ first makes the plain
#    head over-confident; smoothing then repairs it, to near where the plain head at $T = 1$ had been all along. That is
#    the low-rank teacher, at $V = 4{,}096$ too: with peaks in the targets temperature and smoothing together are
#    better than neither ([docs/study_notes.md](../docs/study_notes.md)).
#
# ## 5 · The softcap of a public model
#
# Does a cap of 30 at a vocabulary of 256,000 stand in the way of anything? The norm product that confidence 0.9 in
# every token needs, without and with the cap:

# %%
gemma = committed_table("caps").query("model == 'google/gemma-2-2b'").iloc[0]
size, cap = int(gemma["vocab_size"]), float(gemma["softcap"])
product = np.linspace(5, 40, 300)
fig, ax = plt.subplots()
for c, style in ((None, "-"), (cap, "--"), (10.0, ":"), (7.0, "-.")):
    confidence = analysis.gap_to_confidence(analysis.softcap_gap(product, size, c), size)
    ax.plot(product, confidence, style, label="no cap" if c is None else f"c = {c:g}")
ax.set(xlabel="norm product $m$ (nats)", ylabel="highest confidence in every token", title=f"V = {size:,}")
ax.legend()
plt.show()
needed = float(analysis.confidence_to_gap(0.9, size)) * (size - 1) / size
print(f"confidence .9 in every token: m = {needed:.2f} without a cap, {gemma['needed_m_90']:.2f} with c = {cap:g}")
lowest = float(analysis.optimal_gap(b, size)) / 2
print(f"with logits of +-c the gap that smoothing .1 asks for is out of reach below c = {lowest:.1f}")

# %% [markdown]
# ## What was learnt
#
# - Only what *raises* the logits restores smoothing under a norm budget: a training temperature below $T^*$, or the
#   scaled tanh, which is one. The contraction (the softcap in use) lowers the ceiling, and at usual sizes hardly that.
# - With free norms temperature has no effect, and smoothing acts without help.
# - Nothing done after training makes two equal heads differ. Heads that differ a little can be read so that they
#   differ more: in the study the scaled tanh with $c = 4$, in reading alone, raises the gain of smoothing
#   under the budget by 0.02.
# - Read trained-with-a-cap, evaluated-without comparisons with care: they can show smoothing curing what the cap
#   caused.
#
# **Not shown:** step size and short training, which hold logits back like a budget; the study tunes the step size for
# each way to keep it apart. Nor pretraining with a cap, as for models that were built with one.
#
# **Next:** [04](04_measuring_calibration.ipynb), how to measure calibration at all. Proofs on the four mechanisms of
# capping: [docs/theory_notes.md](../docs/theory_notes.md), sections 1 and 3. Verdicts on K5 and K6:
# [docs/study_notes.md](../docs/study_notes.md).
