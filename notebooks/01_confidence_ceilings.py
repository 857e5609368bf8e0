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
# # 01 · How sure can a softmax head be?
#
# A head turns a hidden state $h \in \mathbb R^D$ into logits $z = W h / T$ over $V$ tokens. If $\lVert h\rVert \le R$
# and no row of $W$ is longer than $B$, then no logit exceeds the **norm product** $m = RB$ (in nats), and the
# confidence $\max_k p_k$ has a ceiling. The question here: **what sets that ceiling, the hidden size, the vocabulary
# or the norms?**
#
# Lines are theory, points are heads that were really trained. Everything takes a few seconds and writes no file.

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

# %% [markdown]
# ## 1 · One context
#
# For one context and one token all that counts is how far its logit can stand above the others. With two rows
# pointing to opposite sides that is $2m$, so $p \le 1/(1 + (V-1)e^{-2m})$. Likewise, with $\lVert z \rVert_2 \le L$
# the entropy is lowest for logits that favour one token over all others equally. Hidden size enters through the norm
# alone: RMSNorm makes $\lVert h\rVert = \sqrt D$ (times its weight), and the norms grow with it. The rank of $W$ plays
# no part.

# %%
norms = np.linspace(0, 30, 300)
fig, (left, right) = plt.subplots(1, 2)
for vocab_size, style in ((256, ":"), (32_768, "--"), (262_144, "-")):
    left.plot(norms, analysis.entropy_floor(norms, vocab_size), style, color="k", label=f"V = {vocab_size:,}")
    right.plot(norms / 2, analysis.single_token_cap(norms / 2, vocab_size), style, color="k")
left.set(xlabel="norm of the logits $L$ (nats)", ylabel="lowest entropy (nats)")
right.set(xlabel="norm product $m$ (nats)", ylabel="highest confidence in one token")
left.legend()
plt.show()

# %% [markdown]
# ## 2 · Every context at once
#
# A useful head must be sure of *every* token, each in a context of its own. Now the tokens compete for directions.
# Write $h_y$ for the hidden state of the context whose token is $y$. By Jensen the gap $G = \log\frac{(V-1)p}{1-p}$
# of a context is at most $z_y$ minus the mean of the others; averaged over the contexts,
#
# $$\begin{aligned}
# &\frac1V\sum_y \Bigl(h_y\cdot w_y - \frac{1}{V-1}\sum_{k\ne y} h_y \cdot w_k\Bigr)\\
# &\quad= \frac{V}{V-1}\cdot\frac1V\sum_y h_y\cdot(w_y - \bar w)\\
# &\quad\le \frac{V}{V-1}\,R\,\sqrt{B^2 - \lVert\bar w\rVert^2} \;\le\; \frac{mV}{V-1},
# \end{aligned}$$
#
# so the smallest gap is at most $mV/(V-1)$: *half* of what one token could have. A regular simplex of $V$ rows, with
# each hidden state along its row, attains it, and fits into $D \ge V - 1$ dimensions.


# %%
def ceilings(vocab_size=32_768, temperature=1.0):
    m = np.linspace(0.1, 30, 400)
    _, ax = plt.subplots()
    ax.plot(m, analysis.single_token_cap(m / temperature, vocab_size), "--", label="one token alone")
    ax.plot(m, analysis.simplex_cap(m / temperature, vocab_size), label="every token in its context")
    ax.set(
        xlabel="norm product $m$ (nats)", ylabel="highest confidence", title=f"V = {vocab_size:,}, T = {temperature:g}"
    )
    ax.legend()
    plt.show()


explore(ceilings, vocab_size=[256, 4_096, 32_768, 262_144], temperature=(0.25, 2.0, 0.25))

# %% [markdown]
# ## 3 · Does the hidden size matter beyond the norms?
#
# For $D < V - 1$ the simplex does not fit. `rank_cap` is the proven ceiling there; what is reached, training must
# tell. (It is proven, not always attained: at $D = 4$ it lies well above what training finds.) Below, the features
# are free, the targets deterministic, and the norms budgeted as under RMSNorm: features of norm $\sqrt D$ and rows of
# norm at most $k\sqrt D$, so $m = kD$. To see hidden size *apart* from norms, $k = m/D$ is chosen such that all heads
# at one $x$ have the same norm product.

# %%
V = 48
teacher = TeacherConfig(kind="det", vocab_size=V, n_contexts=V)
products = np.array([2.0, 3.5, 5.0, 6.5, 8.0])
looks = {4: ("C1", "o"), 8: ("C2", "^"), 16: ("C3", "s"), 48: ("C0", "D")}
reached = pd.DataFrame(
    [fit(FitConfig(teacher=teacher, hidden_size=d, norm_coefficient=m / d)) for d in looks for m in products]
)

fig, ax = plt.subplots(figsize=(7, 3.4))
line = np.linspace(1.5, 8.5, 200)
for d, (color, marker) in looks.items():
    rows = reached[reached["hidden_size"] == d]
    ax.plot(line, analysis.rank_cap(line, V, min(d, V - 1)), color=color, lw=1)
    ax.plot(rows["norm_product"], rows["min_target_probability"], marker, color=color, mfc="none", label=f"D = {d}")
ax.set(xlabel="norm product $m$ (nats)", ylabel="smallest confidence in a token", title=f"V = {V}; lines: ceilings")
ax.legend(title="trained")
plt.show()

# %%
ceiling = analysis.rank_cap(reached["norm_product"], V, reached["hidden_size"].clip(upper=V - 1))
assert (reached["min_target_probability"] <= ceiling + 1e-6).all()  # no trained head passes its ceiling
full = reached[reached["hidden_size"] == V]
assert np.allclose(full["min_target_probability"], analysis.simplex_cap(full["norm_product"], V), atol=2e-3)  # attained
by_size = reached.assign(m=reached["norm_product"].round(3)).pivot(
    index="hidden_size", columns="m", values="confidence"
)
lost = (by_size.loc[V] - by_size).max(axis=1).rename("most confidence lost to the rank")
assert lost[16] < 0.1 < 0.3 < lost[4]
lost.to_frame().round(3)

# %% [markdown]
# At the same norms a hidden size of a third of the vocabulary loses less than 0.1, and only a handful of dimensions
# for 48 tokens lose much. Most of what looks like an effect of hidden size is an effect of the norms that come with
# it.
#
# ## 4 · The heads of public models
#
# How large must the norm product be for confidence 0.9 in every token? `needed` is proven: with less, *no* arrangement
# of the rows does it. `enough` is proven too: with that much, *random* rows do. Geometry can only act between the
# two.

# %%
shapes = committed_table("caps").drop_duplicates("model").query("softcap.isna()").copy()
shapes["name"] = shapes["model"].str.split("/").str[1]
shapes = shapes.sort_values(["vocab_size", "hidden_size"], ascending=False)
fig, ax = plt.subplots(figsize=(7, 3.4))
ax.barh(shapes["name"], shapes["enough_m_90"], color="0.8", label="enough for random rows")
ax.plot(shapes["needed_m_90"], shapes["name"], "|", color="C3", ms=14, mew=2, label="needed by any rows")
for name, row in shapes.set_index("name").iterrows():
    ax.text(0.2, name, f"D = {row['hidden_size']:,}, V = {row['vocab_size']:,}", va="center", size="small")
ax.set(xlabel="norm product for confidence .9 in every token (nats)")
ax.tick_params(axis="y", length=0)
ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
plt.show()
slack = (shapes["enough_m_90"] / shapes["needed_m_90"] - 1).max()
print(f"needed and enough differ by at most {100 * slack:.1f} % over {len(shapes)} models")

# %% [markdown]
# At language-model sizes the two nearly coincide and follow $\log V$: whether such a head can be confident is a
# matter of its *norms*, which have to be measured, and not of its shape.
#
# ## 5 · Your own head
#
# `HeadGeometry.measure` takes a weight `(V, D)` and hidden states `(N, D)` as NumPy arrays or torch tensors, never
# forms $N \times V$ logits, and lists every ceiling that applies, lowest first. `binds`: confidence as label
# smoothing asks for it ($1 - b + b/V$ at every token) is impossible. `vacuous`: this bound does not stand in the way.
# Replace the random stand-in by your model's `lm_head.weight` and a few thousand final hidden states.

# %%
generator = torch.Generator().manual_seed(0)
weight = 0.05 * torch.randn(8_192, 256, generator=generator)
hidden = torch.nn.functional.normalize(torch.randn(500, 256, generator=generator), dim=-1) * 256**0.5

head = analysis.HeadGeometry.measure(weight, hidden)
print(f"norm product {head.norm_product:.1f} nats, rho {head.rho(0.1):.2f} at smoothing .1")
pd.DataFrame(head.cap_table(label_smoothing=0.1)).round(3)

# %% [markdown]
# ## What was learnt
#
# - One token can have a gap of $2m$, every token at once only $mV/(V-1)$: a head of full rank attains it exactly.
# - At equal norms hidden size hardly matters until $D$ is far below $V$; at the sizes of public models geometry takes
#   about one per cent of the norm product. Hidden size counts *through* the norms.
# - Vocabulary enters as $\log V$.
#
# **Not shown:** whether a trained language model comes near its ceiling. Its norms decide that, contexts are not
# deterministic, and the largest norm of a head can be far from the typical one. Nor is a ceiling a statement about
# calibration.
#
# **Next:** [02](02_when_does_smoothing_act.ipynb), what the ceiling means for label smoothing. Proofs:
# [docs/theory_notes.md](../docs/theory_notes.md). What the study's grids say of these ceilings (claim K3):
# [docs/study_notes.md](../docs/study_notes.md).
