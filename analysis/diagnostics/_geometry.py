"""Norms and spectra of a head and its features, and which caps they make bind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import caps
from ..caps import frobenius_gap, packing_gap, spectral_gap
from ..checks import check_count, interval
from ..smoothing import effectiveness_ratio, optimal_gap
from . import _streaming as streaming

Array = NDArray[np.float64]


class CapVerdict(NamedTuple):
    """One cap on this head: its gap in nats, the confidence, and what it means for the gap that smoothing asks for.

    ``verdict`` is "binds" where the cap lies below the gap asked for (that confidence in every token is impossible) and
    "vacuous" where it lies above (the cap does not stand in the way).
    """

    name: str
    gap: float
    confidence: float
    verdict: str


@dataclass(frozen=True)
class HeadGeometry:
    """Norms and spectra of an output head and of the features it sees, in units of the logits' factors.

    Attributes:
        vocab_size: Rows V of the weight.
        hidden_size: Columns D.
        row_norm: Largest ||w_k||.
        row_norm_rms: Root mean square of ||w_k||.
        centred_row_norm_rms: The same after subtracting the mean row, which no softmax sees.
        singular_values: Of the weight, descending, shape (D,).
        centred_singular_values: Of the weight minus its mean row, descending, shape (D,).
        feature_norm_max: Largest ||h||; None without features.
        feature_norm_rms: Root mean square of ||h||; None without features.
        target_cosine: Mean cosine between a feature and the row of its target; None without targets.
        logit_std: Root mean square over contexts of the standard deviation of the raw logits over the vocabulary (the
            s of :mod:`analysis.random_energy`); None without features.
    """

    vocab_size: int
    hidden_size: int
    row_norm: float
    row_norm_rms: float
    centred_row_norm_rms: float
    singular_values: Array
    centred_singular_values: Array
    feature_norm_max: float | None = None
    feature_norm_rms: float | None = None
    target_cosine: float | None = None
    logit_std: float | None = None

    @classmethod
    def measure(cls, weight: Any, features: Any = None, targets: Any = None, *, chunk_size: int = 8192) -> HeadGeometry:
        """Measure a head from numpy arrays or torch tensors of any dtype and device, in float64, chunk by chunk.

        Memory is O(D^2 + chunk_size D): neither V x V nor N x V is ever formed. Singular values come from the D x D
        Gram matrix, so those below 1e-7 of the largest are noise.

        Args:
            weight: The head, shape (V, D).
            features: Features, shape (..., D), or an iterable of such batches. Optional.
            targets: Target tokens, shape (...) or an iterable matching ``features``. Optional, needs features.
            chunk_size: Rows converted at a time.

        Returns:
            The geometry.

        Raises:
            TypeError: If an array has no shape or a dtype that is not real.
            ValueError: If shapes do not fit, a value is NaN or infinite, or a target is not in [0, V).

        Example:
            >>> geometry = HeadGeometry.measure(np.eye(4), np.eye(4) * 3.0, np.arange(4))
            >>> geometry.norm_product, geometry.target_cosine
            (3.0, 1.0)
        """
        chunk_size = check_count("chunk_size", chunk_size)
        shape = streaming.shape_of("weight", weight)
        if len(shape) != 2 or shape[0] < 2 or shape[1] < 1:
            raise ValueError(f"weight must have shape (vocab_size >= 2, hidden_size >= 1), got the shape {shape}.")
        if targets is not None and features is None:
            raise ValueError("targets must come with features, got features None.")
        v, d = shape
        total, gram, largest = np.zeros(d), np.zeros((d, d)), 0.0
        for rows in streaming.chunks("weight", weight, chunk_size):
            total += rows.sum(axis=0)
            gram += rows.T @ rows
            largest = max(largest, float((rows * rows).sum(axis=1).max()))
        centred = gram - np.outer(total, total) / v
        measured: dict[str, float] = {}
        if features is not None:
            measured = streaming.measure_features(weight, features, targets, centred / v, chunk_size)
        return cls(
            vocab_size=v,
            hidden_size=d,
            row_norm=float(np.sqrt(largest)),
            row_norm_rms=float(np.sqrt(np.trace(gram) / v)),
            centred_row_norm_rms=float(np.sqrt(max(np.trace(centred), 0.0) / v)),
            singular_values=_roots(gram),
            centred_singular_values=_roots(centred),
            **measured,
        )

    @property
    def norm_product(self) -> float:
        """Largest ||h|| times largest ||w_k||, in logit units; the m of every cap."""
        return self._largest_feature_norm() * self.row_norm

    @property
    def typical_norm_product(self) -> float:
        """RMS of ||h|| times RMS of the centred ||w_k||, an estimate of what most tokens have, not a bound."""
        self._largest_feature_norm()
        return float(self.feature_norm_rms or 0.0) * self.centred_row_norm_rms

    @property
    def participation_ratio(self) -> float:
        """Participation ratio (sum s^2)^2 / sum s^4 of the centred singular values."""
        power = self.centred_singular_values**2
        return float(power.sum() ** 2 / (power**2).sum()) if power.sum() > 0 else 0.0

    def rho(self, label_smoothing: float, *, temperature: float = 1.0, softcap: float | None = None) -> float:
        """:func:`analysis.smoothing.effectiveness_ratio` at this head's norm product."""
        return float(
            effectiveness_ratio(
                self.norm_product, self.vocab_size, label_smoothing, temperature=temperature, softcap=softcap
            )
        )

    def cap_table(
        self, label_smoothing: float = 0.1, *, temperature: float = 1.0, softcap: float | None = None
    ) -> list[CapVerdict]:
        """Every cap that applies to this head, lowest first, against the gap that ``label_smoothing`` asks for.

        Single-token, simplex, rank, packing, spectral and Frobenius caps (the last two on the centred weight) and,
        with a softcap, the softcap bound. Under a softcap the single-token cap is that of logits of +-c tanh(m / c),
        and the other caps for linear logits become max(cap, confidence 1/2), as in
        :func:`analysis.caps.confidence_cap`.

        Args:
            label_smoothing: Smoothing b in (0, 1] whose optimum is asked for.
            temperature: Temperature T > 0.
            softcap: Cap c > 0 of ``c tanh(z / c)``, or None for no cap.

        Returns:
            The verdicts.

        Raises:
            ValueError: If the geometry was measured without features or an argument is out of range.
        """
        asked = float(optimal_gap(label_smoothing, self.vocab_size))
        v, d, t = self.vocab_size, self.hidden_size, float(interval("temperature", temperature, 0, open_low=True))
        m, r = self.norm_product / t, self._largest_feature_norm() / t
        every_token = {
            "simplex": caps.max_gap(m, v),
            "rank": caps.rank_gap(m, v, d),
            "packing": packing_gap(m, v, d),
            "spectral": spectral_gap(self.centred_singular_values[0], r, v, d),
            "frobenius": frobenius_gap(self.centred_row_norm_rms * np.sqrt(v), r, v),
        }
        if softcap is None:
            gaps = {"single_token": 2 * m, **every_token}
        else:
            softcap_gap = caps.softcap_gap(self.norm_product, v, softcap, temperature=t)
            gaps = {
                "single_token": 2 * softcap * np.tanh(self.norm_product / softcap) / t,
                **{name: np.maximum(gap, np.log(v - 1)) for name, gap in every_token.items()},  # p = 1/2
                "softcap": softcap_gap,
            }
        table = [
            CapVerdict(name, float(gap), float(caps.gap_to_confidence(gap, v)), "binds" if gap < asked else "vacuous")
            for name, gap in gaps.items()
        ]
        return sorted(table, key=lambda verdict: verdict.gap)

    def _largest_feature_norm(self) -> float:
        if self.feature_norm_max is None:
            raise ValueError("features must be given to HeadGeometry.measure for this quantity, got None.")
        return self.feature_norm_max


def _roots(gram: Array) -> Array:
    return np.sqrt(np.maximum(np.linalg.eigvalsh(gram)[::-1], 0.0))
