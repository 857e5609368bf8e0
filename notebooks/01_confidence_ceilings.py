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
# # Confidence ceilings of a softmax head
#
# A head turns a hidden state $h$ into logits $z = W h / T$. If $\lVert h\rVert \le R$ and the rows of $W$ have norm
# at most $B$, the logits are bounded by the *norm product* $m = RB$, and so is the confidence. This notebook asks
#
# 1. how sure a head can be of **one** token, and how low its entropy can be;
# 2. how sure it can be of **every** token in its own context;
# 3. what heads that were really trained reach;
# 4. when label smoothing is then **inert**, because it asks for more than the norms allow.
#
# Everything runs in well under a minute on a laptop and writes no file.

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from analysis.bottleneck import FitConfig, fit
from analysis.caps import entropy_floor, gap_to_confidence, max_gap, simplex_cap, single_token_cap
from analysis.smoothing import effectiveness_ratio, optimal_confidence, optimal_gap, restoring_temperature
from analysis.teachers import TeacherConfig

torch.set_num_threads(1)  # the models here are small
plt.rcParams.update(
    {"figure.figsize": (6.5, 2.8), "figure.dpi": 110, "axes.spines.top": False, "axes.spines.right": False}
)

# %% [markdown]
# ## 1. One context
#
# With $\lVert z\rVert_2 \le L$ the lowest entropy belongs to logits that favour one token over all others equally.
# Hidden size enters through the norm alone: under RMSNorm $\lVert h\rVert = \sqrt D$, and $L$ grows with it. The rank
# of $W$ plays no part.

# %%
norms = np.linspace(0, 30, 300)
fig, (left, right) = plt.subplots(1, 2, layout="constrained")
for vocab_size in (256, 32_768, 262_144):
    left.plot(norms, entropy_floor(norms, vocab_size), label=f"V = {vocab_size:,}")
    right.plot(norms, single_token_cap(norms / 2, vocab_size), label=f"V = {vocab_size:,}")
left.set(xlabel="norm of the logits $L$ (nats)", ylabel="lowest entropy (nats)")
right.set(xlabel="twice the norm product, $2m$ (nats)", ylabel="highest confidence in one token")
left.legend(frameon=False)
plt.show()

# %% [markdown]
# ## 2. Every context at once
#
# One token can have the whole space to itself: a gap of $2m$ to the others. If every token must win in a context of
# its own, they share it, and the best arrangement is a regular simplex with a gap of $mV/(V-1)$: half as much. This
# bound holds at any hidden size and is attained exactly when $D \ge V-1$.

# %%
vocab_size = 32_768
pd.DataFrame(
    {
        "norm product m": (products := np.array([5.0, 10.0, 15.0, 20.0])),
        "one token": single_token_cap(products, vocab_size),
        "every token": simplex_cap(products, vocab_size),
    }
).round(4)

# %% [markdown]
# ## 3. What trained heads reach
#
# Free features, one linear head, deterministic targets, norms budgeted as RMSNorm would: features of norm $\sqrt D$,
# rows of norm at most $k\sqrt D$, so $m = kD$. Each head is trained to convergence through the same loss that a
# language model would use. Hollow points have $D < V - 1$, where the simplex does not fit.

# %%
V = 64
teacher = TeacherConfig(kind="det", vocab_size=V, n_contexts=V)


def trained(hidden_size, norm_product, **options):
    """Row of one trained head with a given norm product."""
    return fit(
        FitConfig(teacher=teacher, hidden_size=hidden_size, norm_coefficient=norm_product / hidden_size, **options)
    )


products = np.array([2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])
reached = pd.DataFrame([trained(d, m) for d in (4, 8, 16, 64) for m in products])
fig, ax = plt.subplots(layout="constrained")
line = np.linspace(1.5, 8.5, 200)
ax.plot(line, simplex_cap(line, V), color="k", lw=1, label="ceiling, any hidden size")
for d, rows in reached.groupby("hidden_size"):
    ax.plot(products, rows["confidence"], "o", ms=5, mfc="none" if d < V - 1 else None, label=f"trained, D = {d}")
ax.set(xlabel="norm product $m$ (nats)", ylabel="mean confidence", title=f"V = {V}")
ax.legend(frameon=False)
plt.show()
assert (reached["min_target_probability"] <= simplex_cap(np.tile(products, 4), V) + 1e-6).all()

# %% [markdown]
# At the same norms a hidden size of 64 attains the ceiling, 16 comes within 0.1 of it, and only very small sizes lose
# much to rank. Most of what looks like an effect of hidden size is an effect of the norms that come with it.
#
# ## 4. When smoothing is inert
#
# With smoothing $b$ the loss is lowest at a gap of $G_{LS} = \log(1 + (1-b)V/b)$. Whether a head feels that depends
# on $\rho = \frac{mV}{(V-1)\,T\,G_{LS}}$: below 1 even the smoothed loss wants more than the norms allow, so both
# losses have the same minimiser.

# %%
b = 0.1
pairs = [(trained(64, m), trained(64, m, label_smoothing=b)) for m in products]
fig, ax = plt.subplots(layout="constrained")
ax.plot(products, [plain["confidence"] for plain, _ in pairs], "o", label="plain")
ax.plot(products, [smoothed["confidence"] for _, smoothed in pairs], "s", mfc="none", ms=8, label=f"smoothed, b = {b}")
ax.plot(line, gap_to_confidence(max_gap(line, V), V), color="C0", lw=1)
ax.plot(line, gap_to_confidence(np.minimum(max_gap(line, V), optimal_gap(b, V)), V), color="C1", lw=1)
ax.axvline(optimal_gap(b, V) * (V - 1) / V, color="0.7", lw=0.8)
ax.text(optimal_gap(b, V) * (V - 1) / V - 0.1, 0.1, r"$\rho = 1$", ha="right", color="0.4")
ax.set(xlabel="norm product $m$ (nats)", ylabel="mean confidence", title=f"V = {V}, D = 64: lines are theory")
ax.legend(frameon=False)
plt.show()

# %% [markdown]
# Training at a lower temperature multiplies the logits and brings smoothing back, if the temperature is below $T^* =
# \rho(T = 1)$:

# %%
m = 4.0
print(
    f"rho = {effectiveness_ratio(m, V, b):.2f} at T = 1; smoothing acts below T* = {restoring_temperature(m, V, b):.2f}"
)
pd.DataFrame(
    [
        {
            "temperature": t,
            "rho": effectiveness_ratio(m, V, b, temperature=t),
            "plain": trained(64, m, temperature=t)["confidence"],
            "smoothed": trained(64, m, temperature=t, label_smoothing=b)["confidence"],
            "target of smoothing": optimal_confidence(b, V),
        }
        for t in (1.0, 0.7, 0.5, 0.25)
    ]
).round(3)

# %% [markdown]
# ## A language model's numbers
#
# The norm product at which smoothing of 0.1 begins to act grows as $\log V$ only: about 13 nats at a vocabulary of
# 32,768 and 15 at 262,144. Whether a model lies above it is a matter of its measured norms.

# %%
sizes = np.array([32_768, 131_072, 262_144])
pd.DataFrame(
    {
        "vocabulary": sizes,
        "norm product where rho = 1": optimal_gap(b, sizes) * (sizes - 1) / sizes,
        "confidence ceiling there": optimal_confidence(b, sizes),
    }
).round(3)
