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
# # 02 · When does label smoothing act?
#
# Label smoothing replaces the target $e_y$ by $q = (1-b)\,e_y + b/V$. It is meant to stop a model from becoming too
# sure. But a head whose norms do not let it become that sure anyway cannot feel it. The question: **given a head,
# will smoothing change it?** Two answers are derived by hand and then measured: one exact for an idealised head
# ($\rho$), one that needs forward passes only and holds for any head ($A$).

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

import analysis
import kernel
from analysis.bottleneck import FitConfig, fit, train
from analysis.claims.effects import paired_effects
from analysis.notebook import committed_table, explore, look
from analysis.teachers import TeacherConfig

torch.set_num_threads(1)  # the models here are small
look()

# %% [markdown]
# ## 1 · What smoothing asks for
#
# With $z_y$ the target's logit and $d = z_y - \operatorname{mean}_{k\neq y} z_k$, the smoothed loss of one context is
#
# $$\begin{aligned}
# CE_b &= \log\sum_k e^{z_k} - (1-b)\,z_y - b\,\operatorname{mean}_k z_k\\
# &= \log\Bigl(1 + \sum_{k\ne y} e^{z_k - z_y}\Bigr) + b\,\tfrac{V-1}{V}\,d .
# \end{aligned}$$
#
# By Jensen the sum is at least $(V-1)\,e^{-d}$, with equality if the other logits are equal. So
#
# $$\begin{aligned}
# CE_b &\ge \varphi(d),\\
# \varphi(g) &= \log\bigl(1 + (V-1)\,e^{-g}\bigr) + b\,\tfrac{V-1}{V}\,g .
# \end{aligned}$$
#
# $\varphi$ is convex. Its slope is $-(1-p) + b\,(V-1)/V$ with $p = 1/(1 + (V-1)e^{-g})$, so it is lowest where
# $p = 1 - b + b/V$, at the gap $G_{LS} = \log(1 + (1-b)V/b)$. A norm product $m$ lets $d$ grow to $mV/((V-1)T)$ on
# average over the tokens ([notebook 01](01_confidence_ceilings.ipynb)): a wall. Move it.


# %%
def wall(norm_product=9.0, label_smoothing=0.1, vocab_size=256):
    gap = np.linspace(0, 20, 400)
    asked = float(analysis.optimal_gap(label_smoothing, vocab_size))
    allowed = float(analysis.max_gap(norm_product, vocab_size))

    def loss(g, b):
        return np.log1p((vocab_size - 1) * np.exp(-g)) + b * g * (vocab_size - 1) / vocab_size

    _, ax = plt.subplots()
    ax.plot(gap, loss(gap, 0), label="plain loss")
    ax.plot(gap, loss(gap, label_smoothing), label=rf"smoothed loss $\varphi$, b = {label_smoothing:g}")
    ax.plot(asked, loss(asked, label_smoothing), "v", color="C1", label="$G_{LS}$: what smoothing asks for")
    ax.axvspan(allowed, 20, color="0.9", zorder=0)
    ax.text(allowed + 0.1, 0.5, "out of reach of these norms", color="0.4", transform=ax.get_xaxis_transform())
    rho = float(analysis.effectiveness_ratio(norm_product, vocab_size, label_smoothing))
    ax.set(
        xlabel="gap $g$ (nats)", ylabel="loss (nats)", xlim=(0, 20),
        title=rf"$\rho$ = {rho:.2f}: smoothing {'acts' if rho > 1 else 'is inert'}",
    )  # fmt: skip
    ax.legend(loc="upper right")
    plt.show()


explore(wall, norm_product=(2.0, 16.0, 0.5), label_smoothing=(0.02, 0.5, 0.02), vocab_size=[64, 256, 4_096, 262_144])

# %% [markdown]
# ## 2 · The exact answer, for an idealised head
#
# Features free inside a ball, every token a target equally often, $D \ge V-1$. Average the loss over the contexts:
#
# $$\begin{gathered}
# \operatorname{mean} CE_b \;\ge\; \operatorname{mean}\varphi(d_y) \;\ge\; \varphi(\operatorname{mean} d_y),\\
# \operatorname{mean} d_y \le \frac{mV}{(V-1)\,T}.
# \end{gathered}$$
#
# The last $\varphi$ falls until $G_{LS}$. So no head has a loss below $\varphi(G^*)$ with
# $G^* = \min\bigl(\frac{mV}{(V-1)T},\, G_{LS}\bigr)$, and a regular simplex of that gap attains it. Both losses,
# plain ($G_{LS} = \infty$) and smoothed, therefore have **the same minimiser** if and only if
#
# $$\rho = \frac{mV}{(V-1)\,T\,G_{LS}} \le 1 .$$
#
# Smoothing is then not weak but inert. Trained heads agree:

# %%
V, b = 32, 0.1
teacher = TeacherConfig(kind="det", vocab_size=V, n_contexts=V)


def trained(hidden_size, norm_product, smoothing=0.0, temperature=1.0):
    """Row of one head, trained to convergence under a norm budget."""
    return fit(
        FitConfig(
            teacher=teacher, hidden_size=hidden_size, norm_coefficient=norm_product / hidden_size,
            label_smoothing=smoothing, temperature=temperature,
        )
    )  # fmt: skip


products = np.arange(2.0, 10.0)
rows = pd.DataFrame([trained(V, m, smoothing) for m in products for smoothing in (0, b)])
fig, ax = plt.subplots()
line = np.linspace(1.5, 9.5, 200)
for smoothing, color, marker, size in ((0, "C0", "o", 5), (b, "C1", "s", 8)):
    ax.plot(line, analysis.smoothing.optimal_gap_under_cap(line, V, smoothing), color=color, lw=1)
    chosen = rows[rows["label_smoothing"] == smoothing]
    ax.plot(products, chosen["logit_gap"], marker, color=color, ms=size, mfc="none", label=f"trained, b = {smoothing}")
turn = float(analysis.optimal_gap(b, V)) * (V - 1) / V
ax.axvline(turn, color="0.7", lw=0.8)
ax.text(turn + 0.1, 2, r"$\rho = 1$", color="0.4")
ax.set(xlabel="norm product $m$ (nats)", ylabel="gap of the target (nats)", title=f"V = D = {V}; lines: theory")
ax.legend()
plt.show()
expected = analysis.smoothing.optimal_gap_under_cap(rows["norm_product"], V, rows["label_smoothing"])
assert np.allclose(rows["logit_gap"], expected, rtol=0.01)

# %% [markdown]
# ## 3 · An answer for any head
#
# Real heads have $D \ll V$, noisy targets, biases, caps. Ask less, then: take a head trained *without* smoothing and
# multiply all its logits by a common factor $1/T$. Does the smoothed loss want them larger or smaller? With
# $p = \operatorname{softmax}(z)$, averaging over the data,
#
# $$\begin{aligned}
# \frac{d}{d\log T}\Bigl[\log\sum_k e^{z_k/T} - \sum_k q_k z_k/T\Bigr]_{T=1}&\\
# = \sum_k q_k z_k - \sum_k p_k z_k .&
# \end{aligned}$$
#
# Now write everything through three losses that one forward pass gives: the entropy
# $H = \operatorname{lse} - \sum_k p_k z_k$, the cross-entropy $CE = \operatorname{lse} - z_y$, and that against
# uniform targets, $CE_u = \operatorname{lse} - \operatorname{mean}_k z_k$. Since
# $\sum_k q_k z_k = (1-b)\,z_y + b\operatorname{mean}_k z_k = \operatorname{lse} - (1-b)\,CE - b\,CE_u$,
#
# $$\begin{gathered}
# \frac{d\,CE_b}{d\log T} = (H - CE) - b\,(CE_u - CE),\\
# A = \frac{H - CE}{b\,(CE_u - CE)} .
# \end{gathered}$$
#
# $A$ is the **activity index**. If $A > 1$, even the smoothed loss still wants *larger* logits: the head is held back
# by something else, and smoothing has nothing to take. If $A < 1$, smoothing pulls the logits down. First the
# algebra, against finite differences on trained heads of low rank:

# %%
step = 1e-3
checked = []
for m in (4.0, 8.0, 12.0):
    config = FitConfig(teacher=teacher, hidden_size=6, norm_coefficient=m / 6)
    head, _, data, *_ = train(config)
    weight, hidden = head.weight().double(), head.hidden().double()[data.context]

    def smoothed_loss(temperature, hidden=hidden, weight=weight, token=data.token):
        return kernel.linear_cross_entropy(hidden, weight, token, label_smoothing=b, temperature=temperature).item()

    losses = analysis.losses_of(kernel.head_statistics(hidden, weight, data.token))  # H, CE, CE_u
    checked.append(
        {
            "norm product": m,
            "slope, formula": float(analysis.smoothing_slope(*losses, b)),
            "slope, differences": (smoothed_loss(1 + step) - smoothed_loss(1 - step)) / (2 * step),
            "A": float(analysis.activity_index(*losses, b)),
        }
    )
checked = pd.DataFrame(checked)
assert np.allclose(checked["slope, formula"], checked["slope, differences"], rtol=1e-4)
checked.round(5)

# %% [markdown]
# On the simplex of section 2, $H - CE = (1-p)\,g$ and $CE_u - CE = g\,(V-1)/V$, so $A = \frac{1-p}{b\,(V-1)/V}$.
# Where smoothing acts it brings the confidence to $1 - b\,(V-1)/V$. The fall is thus
#
# $$p - p_b = b\,\tfrac{V-1}{V}\,\max(0,\ 1 - A),$$
#
# a *prediction of the size* of the effect from the plain head alone. Does it hold off the simplex?
#
# ## 4 · Measured
#
# Pairs of heads, plain and smoothed, over hidden size, norm product and training temperature. Grey: the
# deterministic heads of the study (vocabularies of 256, most of them, to 4,096, softcaps, several seeds; the committed
# table `S3`).

# %%
grid = [(d, m, t) for d in (4, 8, 32) for m in (3.0, 6.0, 9.0, 12.0) for t in (1.0, 0.5)]
pairs = paired_effects(pd.DataFrame([trained(d, m, s, t) for d, m, t in grid for s in (0.0, b)]))
study = paired_effects(committed_table("S3")).query("converged and label_smoothing.between(.09, .11)")
det, noisy = study[study["teacher"] == "det"], study[study["teacher"] != "det"]

fig, axes = plt.subplots(1, 2, sharey=True, figsize=(7, 3.4))
for ax, column in zip(axes, ("effectiveness_ratio", "activity_index"), strict=True):
    ax.plot(det[column], det["confidence_fall"], "o", color="0.8", ms=4, label="study")
    for (d, rows), marker in zip(pairs.groupby("hidden_size"), "o^s", strict=True):
        ax.plot(rows[column], rows["confidence_fall"], marker, mfc="none", label=f"D = {d}")
    ax.axvline(1, color="0.7", lw=0.8)
    ax.set_xscale("log")
axes[0].set(xlabel=r"$\rho$, from norms and vocabulary", ylabel="fall in confidence", xlim=(0.02, 100))
axes[1].set(xlabel="activity index $A$, from forward passes", xlim=(1e-3, 30))
index = np.geomspace(1e-3, 30, 300)
axes[1].plot(index, b * (V - 1) / V * np.maximum(0, 1 - index), "k", lw=1, zorder=0)
axes[1].text(2e-3, 0.04, "line: theory\nof the simplex")
axes[0].legend(title=f"V = {V}", loc="upper left")
plt.show()


# %%
def verdict(table, column, acts):
    """Share of pairs in which the rule says rightly whether the confidence moves by more than .005."""
    return float((acts(table[column]) == (table["confidence_fall"].abs() > 0.005)).mean())


low_rank = pairs[pairs["hidden_size"] < V]
pd.DataFrame(
    {
        "rho > 1": [verdict(t, "effectiveness_ratio", lambda x: x > 1) for t in (pairs, low_rank, det)],
        "A < 1": [verdict(t, "activity_index", lambda x: x < 1) for t in (pairs, low_rank, det)],
    },
    index=["heads trained here", "of these, D < V - 1", "study, deterministic"],
).map("{:.0%}".format)

# %% [markdown]
# At small $D$ the fall is larger than on the simplex: far rivals add to what smoothing charges, $d$, but hardly to
# the gap. It begins at $A = 1$ all the same. Below full rank $\rho$ errs, as it knows nothing of rank; $A$ does not,
# as it asks the head itself. Train a pair of your own:


# %%
def pair(hidden_size=6, norm_product=8.0, temperature=1.0):
    plain, smoothed = (trained(hidden_size, norm_product, s, temperature) for s in (0.0, b))
    index, rho = (plain[name] for name in ("activity_index", "effectiveness_ratio"))
    _, ax = plt.subplots(figsize=(7, 1.6))
    ax.barh(["smoothed", "plain"], [smoothed["confidence"], plain["confidence"]], color=["C1", "C0"])
    ax.axvline(analysis.optimal_confidence(b, V), color="k", ls=":", lw=1.2)
    ax.set(xlim=(0, 1), xlabel="mean confidence; dotted: what smoothing asks for")
    ax.set_title(rf"$\rho$ = {rho:.2f}, A = {index:.2f}: smoothing {'acts' if index < 1 else 'is inert'}")
    plt.show()


explore(pair, hidden_size=[2, 4, 6, 8, 16, 32], norm_product=(1.0, 16.0, 1.0), temperature=(0.25, 2.0, 0.25))

# %% [markdown]
# ## 5 · With noisy targets
#
# Where contexts have several possible tokens, the average that $A$ looks at is made of contexts that differ, and the
# turn is gradual. Whether smoothing then *helps* is another question than whether it acts: on the right the change of
# the true calibration error (from known conditionals), on the left the fall in confidence, both from the study's
# noisy teachers.

# %%
fig, axes = plt.subplots(1, 2, figsize=(7, 3.2))
sizes = dict(zip(sorted(noisy["hidden_size"].unique()), "o^sDv", strict=True))
for ax, column in zip(axes, ("confidence_fall", "true_ece_gain"), strict=True):
    for (d, marker), color in zip(
        sizes.items(), plt.get_cmap("viridis")(np.linspace(0.85, 0, len(sizes))), strict=True
    ):
        rows = noisy[noisy["hidden_size"] == d]
        ax.plot(rows["activity_index"], rows[column], marker, color=color, mfc="none", label=f"D = {d}")
    ax.axvline(1, color="0.7", lw=0.8)
    ax.axhline(0, color="0.7", lw=0.8)
    ax.set(xscale="log", xlabel="activity index $A$ of the plain head")
axes[0].set_ylabel("fall in confidence")
axes[1].set_ylabel("gain in true calibration error")
axes[0].legend()
plt.show()
between = noisy[noisy["activity_index"].between(1.3, 3)]
print(f"fall in confidence at A from 1.3 to 3: up to {between['confidence_fall'].max():.3f}")
assert (noisy["true_ece_gain"] < -0.005).any()  # smoothing can also harm

# %% [markdown]
# ## 6 · Your own model
#
# Hidden states, head and targets of the *training* distribution are all that is needed; no $N \times V$ logits are
# built:
#
# ```python
# of = kernel.head_statistics(hidden, lm_head.weight, target)  # softcap=..., linear_bias=... as your model has them
# analysis.activity_index(*analysis.losses_of(of), label_smoothing=0.1)
# ```
#
# It is what section 3 did. Before training there is no plain head to ask; `analysis.predicted_activity` then predicts
# its index from $m$, $V$, $D$ and $T$ alone:

# %%
predicted = analysis.predicted_activity(checked["norm product"], V, 6, b)
pd.DataFrame({"norm product": checked["norm product"], "A, measured": checked["A"], "A, predicted": predicted}).round(2)

# %% [markdown]
# ## What was learnt
#
# - Smoothing asks for the gap $G_{LS}$. Norms that do not reach it ($\rho \le 1$) make smoothing exactly inert for
#   balanced deterministic targets at full rank.
# - The activity index $A$ of the plainly trained head tells on which side a head with deterministic targets is, and on
#   the simplex also by how much the confidence will fall. There, at $D \ge V-1$, it is no discovery: $A < 1$ says that
#   the plain confidence is above $1 - b + b/V$, no more.
# - Hidden size, vocabulary and temperature matter through $A$.
#
# **Not shown:** that $A > 1$ leaves a noisy head untouched (it does not quite: section 5), that acting is helping, or
# what happens if training stops early, where the optimiser's steps and not the norms hold the logits back:
# [06](06_simulated_instruction_tuning.ipynb) meets such a case.
#
# **Next:** [03](03_temperature_and_capping.ipynb), what temperature and caps do to this. Proofs:
# [docs/theory_notes.md](../docs/theory_notes.md), sections 1 and 2. The study's verdict on claim K4:
# [docs/study_notes.md](../docs/study_notes.md).
