"""S2: confidence and entropy of random logits over their spread, measured against the random energy model."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .. import random_energy
from ..checks import check_fields, check_numbers
from ..lab.registry import Experiment, Prediction, Preset

__all__ = ["EXPERIMENT", "RandomLogitConfig", "configs", "random_logits"]

_DRAWS = 2**23  # logits drawn for each spread
_BLOCK = 2**22

PREDICTIONS = (
    Prediction(
        claim="K3",
        verdict="depends on",
        statement="Entropy, mean confidence and participation of N(0, s^2) logits agree with the finite-V "
        "expectations within their standard errors at every V; the limit of large V is off by more than .5 nats near "
        "s = sqrt(2 log V). The spread at which a head freezes grows as sqrt(2 log V): a norm against log V, no "
        "limit of D as such.",
    ),
)


@dataclass(frozen=True, kw_only=True)
class RandomLogitConfig:
    """Random logits of one vocabulary at several spreads.

    Attributes:
        vocab_size: V >= 2.
        shares: Standard deviations of the logits in units of the critical sqrt(2 log V).
        seed: Of the draws.
    """

    vocab_size: int
    shares: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0)
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self, vocab_size=2, seed=0)
        check_numbers("shares", self.shares, 0)


def random_logits(config: RandomLogitConfig, *, device: str = "cpu") -> dict[str, Any]:
    """Measure statistics of softmax(s g), g standard normal, beside what is expected.

    The draws differ between kinds of device, their distribution does not.

    Returns:
        The config and ``measurements``, one for each spread: ``logit_std``, ``share``, and for ``entropy`` (nats),
        ``confidence`` and ``participation`` (sum of squared probabilities) the measured mean, its standard error
        ``_error``, the exact expectation ``_exact`` (B1) and the limit of large V ``_limit`` (B2).
    """
    wall, cpu = time.perf_counter(), time.process_time()
    v, generator = config.vocab_size, torch.Generator(device).manual_seed(config.seed)
    contexts = max(8, min(20_000, _DRAWS // v))
    critical = float(random_energy.critical_logit_std(v))
    measurements = []
    for share in config.shares:
        std = share * critical
        blocks = []
        for start in range(0, contexts, max(1, _BLOCK // v)):
            size = min(max(1, _BLOCK // v), contexts - start)
            z = std * torch.randn(size, v, generator=generator, device=device, dtype=torch.float32).double()
            log_p = z.log_softmax(-1)
            p = log_p.exp()
            blocks.append(torch.stack([-(p * log_p).sum(-1), p.amax(-1), p.square().sum(-1)]).cpu())
        values = torch.cat(blocks, dim=1).numpy()  # (3, contexts)
        error = values.std(axis=1, ddof=1) / contexts**0.5
        exact = (
            random_energy.expected_entropy(std, v),
            random_energy.expected_confidence(std, v),
            random_energy.participation(std, v),
        )
        limit = (
            random_energy.asymptotic_entropy(std, v),
            random_energy.asymptotic_confidence(std, v),
            random_energy.asymptotic_participation(std, v),
        )
        line: dict[str, float] = {"share": share, "logit_std": std}
        for i, name in enumerate(("entropy", "confidence", "participation")):
            line |= {name: float(values[i].mean()), f"{name}_error": float(error[i])}
            line |= {f"{name}_exact": float(np.asarray(exact[i])), f"{name}_limit": float(np.asarray(limit[i]))}
        measurements.append(line)
    return {
        "vocab_size": v,
        "data_seed": config.seed,
        "contexts": contexts,
        "measurements": measurements,
        "converged": True,
        "device": device,
        "wall_seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
    }


def configs(preset: Preset) -> list[RandomLogitConfig]:
    """Vocabularies up to 65,536 (quick) or 262,144 (full); five seeds."""
    vocabularies = (256, 4096, 65_536) if preset == "quick" else (256, 2048, 16_384, 65_536, 262_144)
    seeds = 3 if preset == "quick" else 5
    shares = RandomLogitConfig(vocab_size=2).shares
    if preset == "full":
        shares = tuple(float(x) for x in np.round(np.geomspace(0.2, 4, 17), 3))
    return [RandomLogitConfig(vocab_size=v, shares=shares, seed=seed) for v in vocabularies for seed in range(seeds)]


def _seconds(config: RandomLogitConfig, device: str) -> float:
    """From timed runs: 100 million draws a second and 0.1 s of quadrature for each spread."""
    rate = 2e9 if device.startswith("cuda") else 1e8
    return len(config.shares) * (_DRAWS / rate + 0.1)


EXPERIMENT = Experiment(
    name="S2",
    title="Random logits: confidence and entropy over the spread, against the random energy model",
    compute=random_logits,
    configs=configs,
    seconds=_seconds,
    predictions=PREDICTIONS,
)
