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
# # 05 · The smoothed loss in a training loop, without the logits
#
# The last layer of a language model makes $N \times V$ logits, tokens times vocabulary: the largest array of the
# whole training step, kept for the backward pass, and only to be reduced to one number. The question: **what changes
# in a training loop when the loss never builds them, and what does not?**
#
# The line to swap: where a loop has
#
# ```python
# logits = hidden @ head.weight.T
# loss = torch.nn.functional.cross_entropy(logits, target, label_smoothing=0.1)
# ```
#
# it gets
#
# ```python
# from kernel import linear_cross_entropy
#
# loss = linear_cross_entropy(hidden, head.weight, target, label_smoothing=0.1)
# ```
#
# On this CPU that runs the `chunked` implementation, plain PyTorch in blocks of tokens; on an NVIDIA GPU the same
# line takes the fused Triton kernels.

# %%
import re
from pydoc_data.topics import topics

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn import functional as F

import analysis
from analysis.calibration import fit_head_temperature, from_statistics
from analysis.notebook import committed_table, explore, look
from analysis.plots import reliability_diagram
from kernel import LinearCrossEntropy, head_statistics, linear_cross_entropy
from kernel.benchmark.cpu import measure_peak_bytes

torch.set_num_threads(1)  # the models here are small
look()


def eager(hidden, weight, target, **options):
    """The usual way: all logits at once."""
    return F.cross_entropy(hidden @ weight.T, target, **options)


# %% [markdown]
# ## 1 · The same number, the same gradients


# %%
def problem(tokens, vocab_size, hidden_size, dtype=torch.float32):
    """Hidden states, head and targets; the same float32 numbers in every dtype."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, hidden_size, generator=generator)
    weight = 2 / hidden_size**0.5 * torch.randn(vocab_size, hidden_size, generator=generator)
    target = torch.randint(vocab_size, (tokens,), generator=generator)
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), target


def results(loss, dtype):
    """Loss and both gradients, in float64."""
    hidden, weight, target = problem(300, 1_000, 32, dtype)
    value = loss(hidden, weight, target, label_smoothing=0.1)
    return [x.detach().double() for x in (value, *torch.autograd.grad(value, (hidden, weight)))]


exact = results(eager, torch.float64)
for name, loss in (("eager", eager), ("linear_cross_entropy", linear_cross_entropy)):
    found = zip(results(loss, torch.float32), exact, strict=True)
    worst = max(((ours - true).norm() / true.norm()).item() for ours, true in found)
    assert worst < 1e-6
    print(f"{name}: loss and gradients in float32 within 1e-6 of float64")

# %% [markdown]
# ## 2 · What autograd holds
#
# PyTorch tells which tensors a graph keeps until the backward pass (`saved_tensors_hooks`). Counted for a growing
# vocabulary:


# %%
def held_bytes(loss, tokens, vocab_size, hidden_size):
    """Bytes that autograd keeps between forward and backward, inputs apart."""
    hidden, weight, target = problem(tokens, vocab_size, hidden_size)
    own = {x.untyped_storage().data_ptr() for x in (hidden, weight, target)}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        value = loss(hidden, weight, target, label_smoothing=0.1)
    del value
    return sum(kept.values())


def memory(tokens=1_024, hidden_size=64):
    vocabularies = [1_024, 4_096, 16_384, 65_536]
    _, ax = plt.subplots()
    for loss, name, style in ((eager, "eager", "o-"), (linear_cross_entropy, "linear_cross_entropy", "s--")):
        mib = [held_bytes(loss, tokens, v, hidden_size) / 2**20 for v in vocabularies]
        ax.plot(vocabularies, mib, style, label=name)
        ax.text(72_000, mib[-1], f"{mib[-1]:.0f} MiB", va="center")
    ax.set(xscale="log", yscale="log", xlabel="vocabulary", ylabel="held for the backward (MiB)", xlim=(900, 130_000))
    ax.set(xticks=vocabularies, xticklabels=[f"{v:,}" for v in vocabularies])
    ax.set_title(f"{tokens:,} tokens, hidden size {hidden_size}")
    ax.minorticks_off()
    ax.legend()
    plt.show()


explore(memory, tokens=[128, 256, 512, 1_024], hidden_size=[32, 64, 128, 256])

# %% [markdown]
# Eager holds a float32 array of $N \times V$. The fused loss holds the two gradients, $V \times D$ and $N \times D$:
# it forms them in the forward pass, block by block, and the backward pass only scales them. They have to exist
# anyway, so nothing is lost. The peak of the process (including what is *not* held but needed for a moment), each
# measured in a process of its own:

# %%
peak = {name: measure_peak_bytes(name, 1_024, 16_384, 64, 0.1, None) / 2**20 for name in ("eager", "chunked")}
assert peak["eager"] > 3 * 64 * 0.9  # three arrays of N x V in float32, 64 MiB each
assert peak["chunked"] < 40  # gradients, and blocks of 16 MiB
print("peak over the inputs, N = 1,024, V = 16,384:", "eager three arrays of N x V, chunked less than one", sep="\n")
sizes = ["tokens", "vocab_size", "hidden_size"]
measured = ["logits_mib", "eager_peak_mib", "chunked_peak_mib", "time_ratio"]
committed_table("chunked").query("label_smoothing == 0.1 and softcap.isna()").set_index(sizes)[measured]

# %% [markdown]
# (The table was made by `python -m kernel.benchmark.cpu` on one machine; `time_ratio` is chunked over eager. For GPUs
# see [docs/kernel.md](../docs/kernel.md#what-it-costs).)
#
# ## 3 · A real training, twice
#
# A small language model on the texts of Python's own documentation, which every installation of Python has: eight
# words in, the next word out, embedding and head tied. The loop takes the loss as an argument.

# %%
words = re.findall(r"\w+|[^\w\s]", "\n".join(topics[name] for name in sorted(topics)))[:40_000]
vocabulary = {word: index for index, word in enumerate(sorted(set(words)))}
text = torch.tensor([vocabulary[word] for word in words])
windows = text.unfold(0, 9, 1)  # eight words and the next
cut = len(windows) * 9 // 10
training, held_out = windows[:cut], windows[cut + 8 :]
V, D = len(vocabulary), 64


class LanguageModel(nn.Module):
    """Mean of what a perceptron sees in eight words, normalised as by RMSNorm; the head is the embedding."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(V, D)
        self.body = nn.Sequential(nn.Linear(8 * D, 256), nn.GELU(), nn.Linear(256, D), nn.RMSNorm(D))
        nn.init.normal_(self.embedding.weight, std=D**-0.5)

    def forward(self, context):
        return self.body(self.embedding(context).flatten(1))


def train(loss, label_smoothing, steps=400, batch=256):
    """A model trained with this loss, and the course of the loss; always the same batches."""
    torch.manual_seed(0)
    model, losses = LanguageModel(), []
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    order = torch.randint(len(training), (steps, batch), generator=torch.Generator().manual_seed(1))
    for rows in order:
        context, target = training[rows, :8], training[rows, 8]
        value = loss(model(context), model.embedding.weight, target, label_smoothing=label_smoothing)  # the line
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        losses.append(value.item())
    return model, np.array(losses)


usual, usual_losses = train(eager, 0.1)
smoothed, smoothed_losses = train(linear_cross_entropy, 0.1)

fig, ax = plt.subplots()
ax.plot(usual_losses, lw=4, color="0.75", label="eager")
ax.plot(smoothed_losses, lw=1, color="C0", label="linear_cross_entropy")
ax.axhline(analysis.smoothing.loss_floor(0.1, V), color="k", lw=1, ls=":", label="entropy of the smoothed targets")
ax.set(xlabel="step", ylabel="smoothed training loss (nats)", ylim=(0, None))
ax.legend()
plt.show()
assert np.allclose(usual_losses[:50], smoothed_losses[:50], rtol=1e-4)  # then rounding grows, as between any two runs
assert abs(usual_losses[-50:].mean() - smoothed_losses[-50:].mean()) < 0.02

# %% [markdown]
# The same course. (A smoothed loss does not go to 0: it ends at the entropy of its targets.) As a module with its own
# options, here tied to the embedding:

# %%
module = LinearCrossEntropy(D, V, weight=smoothed.embedding.weight, label_smoothing=0.1)
context, target = training[:256, :8], training[:256, 8]
assert module(smoothed(context), target) == linear_cross_entropy(
    smoothed(context), smoothed.embedding.weight, target, label_smoothing=0.1
)
module

# %% [markdown]
# ## 4 · What smoothing did, measured without logits
#
# `head_statistics` gives confidence, entropy, rank and more of every token, again without $N \times V$ logits;
# `from_statistics` makes a calibration state of them. First the question of [notebook
# 02](02_when_does_smoothing_act.ipynb), put to the model trained *without* smoothing:

# %%
plain, _ = train(linear_cross_entropy, 0.0)


@torch.no_grad()
def statistics(model, rows):
    return head_statistics(model(rows[:, :8]), model.embedding.weight, rows[:, 8])


losses = analysis.losses_of(statistics(plain, training[::10]))
index = float(analysis.activity_index(*losses, label_smoothing=0.1))
assert index < 1
print(f"activity index A = {index:.2f} at smoothing .1: smoothing acts on this model")

# %%
states = {
    name: from_statistics(statistics(model, held_out)) for name, model in (("plain", plain), ("smoothed", smoothed))
}
assert states["smoothed"].mean_confidence < states["plain"].mean_confidence  # as the index says
fig, axes = plt.subplots(1, 2, sharey=True, figsize=(7, 3.6))
for ax, (name, state), color in zip(axes, states.items(), ("C0", "C1"), strict=True):
    reliability_diagram(state, ax, color=color)
    error = state.interval(n_resamples=300)
    ax.set_title(f"{name}: ECE {error.error:.3f} [{error.low:.3f}, {error.high:.3f}]")
axes[1].set_ylabel("")
plt.show()

# %% [markdown]
# The rival that any smoothing should be compared with costs one number: a temperature fitted afterwards, on half of
# the held-out text and read on the other half, from hidden states and head, many temperatures in one pass.

# %%
half = len(held_out) // 2  # some two thousand tokens


@torch.no_grad()
def cooled(model):
    """State of the second half at the temperature that fits the first half."""
    weight = model.embedding.weight
    fit = fit_head_temperature([(model(held_out[:half, :8]), held_out[:half, 8])], weight)
    rows = held_out[half:]
    read = head_statistics(model(rows[:, :8]), weight, rows[:, 8], temperatures=(1.0, fit.temperature))
    return fit.temperature, *(from_statistics(read, temperature_index=i) for i in (0, 1))


lines = []
for name, model in (("plain", plain), ("smoothed", smoothed)):
    temperature, before, after = cooled(model)
    for way, state in (("T = 1", before), (f"T = {temperature:.2f}, fitted", after)):
        lines.append([name, way, state.accuracy, state.mean_confidence, state.nll, state.calibration_error()])
columns = ["trained", "read at", "accuracy", "confidence", "NLL", "ECE"]
pd.DataFrame(lines, columns=columns).set_index(columns[:2]).round(3)

# %% [markdown]
# ## What was learnt
#
# - Swapping the line changes neither the loss nor the gradients beyond rounding, nor the course of a training.
# - What is held for the backward pass shrinks from $N \times V$ to the gradients themselves.
# - The same sweep over the head answers, without logits, how sure a model is, whether smoothing acts on it, and which
#   temperature calibrates it.
#
# **Not shown:** speed. On a CPU it depends on the machine and the shape (committed table above), on GPUs see
# [docs/kernel.md](../docs/kernel.md#what-it-costs). `chunked` raises half precision to float32, forms no
# second derivatives, and breaks the graph of `torch.compile`. A model of a forty thousand words also says nothing about
# large ones.
#
# In Hugging Face training not even this line is yours: `kernel.huggingface.SmoothedTrainer` replaces
# `transformers.Trainer`, and `fuse_loss(model, label_smoothing=0.1)` gives any loop a model whose `loss` is the fused
# one.
#
# **Next:** [06](06_simulated_instruction_tuning.ipynb), tuning where the truth is known. What the study found on
# claim K7 (cost of the loss): [docs/study.md](../docs/study.md#claims-and-verdicts) and, in full,
# `paper_figures/data/verdicts.csv`.
