"""Calibration against known conditional distributions: no sampled labels, no estimate."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import rel_entr, xlogy

from ..checks import as_numpy, check_choice, check_index, distribution, interval
from ._binning import BinSums, Norm, binned_error, sum_by, uniform_index
from ._inputs import check_bins, weights

Kind = Literal["top_label", "canonical"]
Given = Literal["prediction", "context"]


def _distributions(
    p_model: Any, p_true: Any, weight: Any
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    check_index(p_model=p_model, p_true=p_true, weight=weight)
    model = distribution("p_model", as_numpy("p_model", p_model))
    true = distribution("p_true", as_numpy("p_true", p_true))
    if model.shape != true.shape:
        raise ValueError(f"p_true must have p_model's shape {model.shape}, got {true.shape}.")
    shape, vocab_size = model.shape[:-1], model.shape[-1]
    model, true = model.reshape(-1, vocab_size), true.reshape(-1, vocab_size)
    if not len(model):
        raise ValueError("p_model must hold at least one context.")
    weight = weights("weight", weight, shape)
    possible = weight > 0
    return (model, true, weight) if possible.all() else (model[possible], true[possible], weight[possible])


def _group_rows(model: NDArray[np.float64]) -> NDArray[np.intp]:
    """A number for each row, equal where the rows are equal: the rows are compared as byte strings."""
    rows = np.ascontiguousarray(model + 0.0)  # -0.0 becomes 0.0
    return np.unique(rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1]))).ravel(), return_inverse=True)[
        1
    ]


def _conditional(
    model: NDArray[np.float64], true: NDArray[np.float64], weight: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Contexts of equal prediction merged: the predictions, E[p_true | prediction], their weights."""
    inverse = _group_rows(model)
    groups = int(inverse.max()) + 1
    if groups == len(model):
        return model, true, weight
    total = sum_by(inverse, weight, groups)
    merged = np.zeros((groups, model.shape[1]))
    np.add.at(merged, inverse, weight[:, None] * true)
    prediction = np.zeros_like(merged)
    prediction[inverse] = model
    return prediction, merged / total[:, None], total


def tied_accuracy(p_model: Any, p_true: Any, tolerance: float = 0.01, counts: Any = None) -> Any:
    """Return the true probability of the predicted token; of tokens that tie for the prediction, the mean of theirs.

    A head that repeats the counts of its sample gives tokens of equal counts one probability, up to what the training
    left: which of them comes first says nothing of the head, and one that swaps them has the same training loss.

    Args:
        p_model: Predictions.
        p_true: Conditionals.
        tolerance: Tokens tie for the prediction whose probability is at least 1 - tolerance times the largest; 0 for
            exact ties. Trained heads that repeat their counts leave .002 of it between equal ones.
        counts: What each context was trained on, of the same shape and at least 0: tokens tie within the tolerance only
            where theirs is that of the predicted one. Without it a head of small norms or under a tight cap, all of
            whose probabilities are close, has ties where the order of its tokens says much.

    Returns:
        ``(...)``.
    """
    top = p_model.max(-1, keepdims=True)
    top = getattr(top, "values", top)
    tied = p_model >= (1 - tolerance) * top
    if counts is not None:
        equal = p_model == top
        own = (counts * equal).max(-1, keepdims=True)
        tied = equal | (tied & (counts == getattr(own, "values", own)))
    return (p_true * tied).sum(-1) / tied.sum(-1)


def binned_true_error(confidence: NDArray[np.float64], accuracy: NDArray[np.float64], n_bins: int = 15) -> float:
    """Average the distance of confidence and accuracy over equal-width bins: a ``true_calibration_error`` of bins.

    Args:
        confidence: ``(N,)``, of contexts that count equally.
        accuracy: True probability of each prediction, ``(N,)``.
        n_bins: Number of bins.
    """
    confidence = np.minimum(confidence, 1.0)
    gaps = sum_by(uniform_index(confidence, n_bins), confidence - accuracy, n_bins)
    return float(np.abs(gaps).sum() / confidence.size)


def true_calibration_error(
    p_model: Any,  # (..., V)
    p_true: Any,  # (..., V)
    *,
    weight: Any = None,  # (...)
    kind: Kind = "top_label",
    given: Given = "prediction",
    norm: Norm = "l1",
    n_bins: int | None = None,
    tie_tolerance: float = 0.0,
) -> float:
    r"""Measure the calibration error under known conditionals, exactly over the contexts and without sampled labels.

    With c = max_k p_model,k at class k* and a = p_true,k*, its mean over the classes that tie for k*,

    .. math::
        \text{top\_label:}\quad &\bigl(\mathbb E\,|c - \mathbb E[a \mid c]|^p\bigr)^{1/p}, \\
        \text{canonical:}\quad &\bigl(\mathbb E\,\lVert p - \mathbb E[p_\text{true} \mid p]\rVert_p^p\bigr)^{1/p}

    The expectation is over the contexts given, weighted by ``weight``. A coarse model may reach 0: see
    :func:`true_decomposition`.

    Args:
        p_model: Predicted distributions.
        p_true: Conditional distributions of the label, of the same shape.
        weight: Probability of each context, any positive scale; None for equal weights.
        kind: ``"top_label"`` compares the confidence alone, ``"canonical"`` all V probabilities (l1 is twice the total
            variation, so it lies in [0, 2]).
        given: ``"prediction"`` merges contexts whose prediction (the confidence, or all of p_model) is exactly equal,
            the definition of calibration. ``"context"`` merges none: an upper bound, 0 only where the model is right in
            every context, and robust where predictions are equal in theory but not to the last bit.
        norm: ``"l1"``, ``"l2"`` or ``"max"``.
        n_bins: None for the exact error. A number merges confidences within equal-width bins instead, the quantity that
            :func:`calibration_error` estimates and a lower bound of the exact one; top_label only.
        tie_tolerance: Classes tie for k* whose probability is at least 1 - tie_tolerance times the largest; 0 for
            exact ties. A head that repeats its sample's counts meets their ties up to what its training left: .01 finds
            these. Where all probabilities are close, as under small norms or a tight cap, it finds others too: give
            :func:`tied_accuracy` the counts there. top_label only.

    Returns:
        The error.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If rows are no distributions, shapes differ, or ``n_bins`` is combined with canonical or context.

    References:
        Vaicenavicius et al., "Evaluating model calibration in classification", 2019, Sec. 2-3. arXiv:1902.06977

    Example:
        >>> smoothed = 0.9 * np.array([[0.8, 0.2], [0.6, 0.4]]) + 0.1 / 2
        >>> round(true_calibration_error(smoothed, [[0.8, 0.2], [0.6, 0.4]]), 4)  # 0.1 (E max p_true - 1/2)
        0.02
    """
    check_choice("kind", kind, ("top_label", "canonical"))
    check_choice("given", given, ("prediction", "context"))
    check_choice("norm", norm, ("l1", "l2", "max"))
    if n_bins is not None:
        n_bins = check_bins(n_bins)
        if kind == "canonical" or given == "context":
            raise ValueError(f"n_bins must be None with kind={kind!r} and given={given!r}, got {n_bins}.")
    tie_tolerance = float(interval("tie_tolerance", tie_tolerance, 0, 1, open_high=True))
    model, true, weight = _distributions(p_model, p_true, weight)
    if kind == "canonical":
        if given == "prediction":
            model, true, weight = _conditional(model, true, weight)
        gap = np.abs(model - true)
        if norm == "max":
            return float(gap.max())
        return float(weight @ gap.sum(-1)) if norm == "l1" else float(np.sqrt(weight @ (gap**2).sum(-1)))
    confidence = np.minimum(model.max(-1), 1.0)
    accuracy = tied_accuracy(model, true, tie_tolerance)
    if n_bins is not None:
        index = uniform_index(confidence, n_bins)
    elif given == "prediction":
        index = np.unique(confidence, return_inverse=True)[1]
    else:
        index = np.arange(confidence.size)
    size = int(index.max()) + 1
    sums = BinSums(*(sum_by(index, weight * x, size) for x in (np.ones_like(weight), accuracy, confidence)))
    return binned_error(sums, norm)


class TrueDecomposition(NamedTuple):
    """Expected scores under known conditionals: score = calibration + refinement, refinement >= irreducible."""

    nll: float
    nll_calibration: float
    nll_refinement: float
    nll_irreducible: float
    brier: float
    brier_calibration: float
    brier_refinement: float
    brier_irreducible: float


def true_decomposition(p_model: Any, p_true: Any, *, weight: Any = None) -> TrueDecomposition:
    r"""Split the expected NLL (nats) and Brier score into calibration and refinement, under known conditionals.

    With :math:`r = \mathbb E[p_\text{true} \mid p_\text{model}]`,

    .. math::
        \mathbb E[-\log p_Y] &= \mathbb E\,\mathrm{KL}(r \,\|\, p) + \mathbb E\,H(r), \\
        \mathbb E\,H(r) &\ge \text{irreducible} = \mathbb E\,H(p_\text{true}), \\
        \mathbb E\,\lVert p - e_Y\rVert^2 &= \mathbb E\,\lVert r - p\rVert^2 + \mathbb E[1 - \lVert r\rVert^2]

    Calibration is what a relabelling of the predictions can remove, refinement minus irreducible is what the model
    loses by giving different contexts the same prediction.

    Args:
        p_model: Predicted distributions ``(..., V)``.
        p_true: Conditional distributions of the label, of the same shape.
        weight: Probability of each context ``(...)``; None for equal weights.

    Returns:
        The eight expectations; ``nll`` and ``nll_calibration`` are inf where the model excludes a possible label.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If rows are no distributions or the shapes differ.

    References:
        Kull, Flach, "Novel Decompositions of Proper Scoring Rules", ECML 2015, Sec. 3.
        Bröcker, "Reliability, sufficiency, and the decomposition of proper scores", 2009.

    Example:
        >>> split = true_decomposition([[0.5, 0.5], [0.5, 0.5]], [[1.0, 0.0], [0.0, 1.0]])
        >>> split.nll_calibration, round(split.nll_refinement, 4), split.nll_irreducible
        (0.0, 0.6931, 0.0)
    """
    model, true, weight = _distributions(p_model, p_true, weight)
    nll_irreducible = float(weight @ -xlogy(true, true).sum(-1))
    brier_irreducible = float(weight @ (1 - (true**2).sum(-1)))
    model, r, weight = _conditional(model, true, weight)
    nll_calibration = float(weight @ rel_entr(r, model).sum(-1))  # rel_entr(x, y) = x log(x / y)
    nll_refinement = float(weight @ -xlogy(r, r).sum(-1))
    brier_calibration = float(weight @ ((r - model) ** 2).sum(-1))
    brier_refinement = float(weight @ (1 - (r**2).sum(-1)))
    return TrueDecomposition(
        nll_calibration + nll_refinement, nll_calibration, nll_refinement, nll_irreducible,
        brier_calibration + brier_refinement, brier_calibration, brier_refinement, brier_irreducible,
    )  # fmt: skip
