"""S1: how sure a head can be of every token at once, against the proven caps, over V, D and the norm product."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import caps
from ..checks import check_fields, check_numbers
from ..head_shapes import HEAD_SHAPES
from ..lab.registry import Experiment, Prediction, Preset
from ..smoothing import optimal_gap

__all__ = ["EXPERIMENT", "CeilingConfig", "ceilings", "configs"]

_SMOOTHING = 0.1
_ALIGNED = 2**22  # largest V D for which the bound for aligned heads is computed
_SEARCHED = 512  # largest V that projected gradient is asked about

PREDICTIONS = (
    Prediction(
        claim="K3",
        verdict="depends on",
        statement="No head found by projected gradient exceeds a proven cap (A2, A3). At the shapes of public "
        "language models the norm product that no head can undercut and the one at which random rows suffice differ "
        "by less than 2 %, so that the geometry of D dimensions costs nothing there; in D <= 4 dimensions it costs a "
        "third of the gap or more.",
    ),
)


@dataclass(frozen=True, kw_only=True)
class CeilingConfig:
    """Ceilings of one shape at several norm products.

    Attributes:
        vocab_size: V >= 2.
        hidden_size: D >= 1.
        shares: Norm products, in units of the smoothing-optimal gap of b = .1.
        seed: Of the random heads that the search starts from.
        model: Name of the public model of this shape, "" for none.
    """

    vocab_size: int
    hidden_size: int
    shares: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
    seed: int = 0
    model: str = ""

    def __post_init__(self) -> None:
        check_fields(self, vocab_size=2, hidden_size=1, seed=0)
        check_numbers("shares", self.shares, 0)


def ceilings(config: CeilingConfig, *, device: str = "cpu") -> dict[str, Any]:
    """Compute caps and attained gaps of one shape, in numpy: a row with one measurement for each norm product.

    Returns:
        The config and ``measurements`` with ``norm_product``; ``simplex_gap`` (A2), ``rank_gap`` (A3), ``aligned_gap``
        (A4, aligned heads only; nan for large shapes), ``random_code_gap`` (what random rows are proven to reach on
        average), ``attained_gap`` (projected gradient; nan for V > 512), all in nats, and ``margin_low``,
        ``margin_high``, bounds of the largest hard margin per unit of norm product (A6).
    """
    wall, cpu = time.perf_counter(), time.process_time()
    v, d = config.vocab_size, config.hidden_size
    m = np.asarray(config.shares) * optimal_gap(_SMOOTHING, v)
    margin = caps.margin_bounds(v, d)
    nothing = np.full(m.shape, np.nan)
    aligned = caps.confidence_to_gap(caps.aligned_cap(m, v, d), v) if v * d <= _ALIGNED else nothing
    attained = nothing
    if v <= _SEARCHED:
        attained = caps.attained_gap(m, v, d, restarts=2, generator=np.random.default_rng(config.seed))
    columns = {
        "share": np.asarray(config.shares),
        "norm_product": m,
        "simplex_gap": caps.max_gap(m, v),
        "rank_gap": caps.rank_gap(m, v, d),
        "aligned_gap": aligned,
        "random_code_gap": caps.confidence_to_gap(caps.random_code_confidence(m, v, d), v),
        "attained_gap": attained,
    }
    measurements = [{name: float(values[i]) for name, values in columns.items()} for i in range(m.size)]
    return {
        "vocab_size": v,
        "hidden_size": d,
        "model": config.model,
        "data_seed": config.seed,
        "margin_low": float(margin.lower),
        "margin_high": float(margin.upper),
        "measurements": measurements,
        "converged": True,
        "device": "cpu",
        "wall_seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
    }


def configs(preset: Preset) -> list[CeilingConfig]:
    """Small shapes that can be searched, three or five starts each, and the shapes of public models, without search."""
    quick = preset == "quick"
    vocabularies = (16, 64) if quick else (16, 64, 256)
    sizes = (2, 3, 4, 8, 16, 64) if quick else (2, 3, 4, 6, 8, 12, 16, 32, 64, 128, 256)
    small = [
        CeilingConfig(vocab_size=v, hidden_size=d, seed=seed)
        for v in vocabularies
        for d in sizes
        if d <= v
        for seed in range(3 if quick else 5)
    ]
    public = [
        CeilingConfig(vocab_size=shape.vocab_size, hidden_size=shape.hidden_size, model=shape.model)
        for shape in HEAD_SHAPES
    ]
    return small + public


def _seconds(config: CeilingConfig, device: str) -> float:
    """From timed runs: 400 steps of 12 heads."""
    v, d = config.vocab_size, config.hidden_size
    if v > _SEARCHED:
        return 0.1
    return 0.5 + 400 * 2 * len(config.shares) * (6 * v * v * d / 3e10 + 12 * v * v / 1e9)


EXPERIMENT = Experiment(
    name="S1",
    title="Ceilings: how sure a head can be of every token at once",
    compute=ceilings,
    configs=configs,
    seconds=_seconds,
    predictions=PREDICTIONS,
    gpu=False,
)
