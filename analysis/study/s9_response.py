"""S9: how well the plain head alone predicts the fall that smoothing brings, in every cell of S3, S4 and S5 and beyond.

The plain heads of those experiments are trained again, as a table holds numbers and no weights, and everything that can
be said of smoothing without smoothing is computed from them; the falls themselves are in the tables. Three new arms
have no rows elsewhere and train their smoothed heads too: a trunk at 1, 8 and 64 samples a context, 128 to 4096
contexts, and deterministic cells in the transition at V = 1024 to 32768.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..bottleneck import FitConfig, Fitted, train
from ..bottleneck._measures import measure
from ..bottleneck._training import course
from ..lab.records import config_key
from ..lab.registry import Experiment, Prediction, Preset, experiment
from ..response import (
    clipped_fall,
    exceeds_smoothed_target,
    frozen_head_response,
    rational_fall,
    stationarity,
    susceptibility,
)
from ..smoothing import activity_index
from ..teachers import TeacherConfig
from .grids import fit_queue, fit_seconds, heads

__all__ = ["EXPERIMENT", "ResponseConfig", "configs", "respond"]

_SOURCES = ("S3", "S4", "S5")
_LARGEST = 4096  # vocabulary of those that are trained again
# Coefficients k of det heads of width 64 whose index at b = .1 is predicted to be 1.5 and .6 (predicted_activity).
_DET = {1024: (0.1405, 0.1579), 4096: (0.1656, 0.1836), 32768: (0.2049, 0.2241)}
# Products with a Hessian that a response takes for each b, and what one costs for each logit beside its arithmetic.
_PRODUCTS = 100
_ENTRY = {"cpu": 1.2e-8, "cuda": 3e-11}  # seconds
_RATE = {"cpu": 2e10, "cuda": 2e13}  # float64 operations a second
_LAUNCH = {"cpu": 2e-4, "cuda": 1e-3}  # seconds a product

PREDICTIONS = (
    Prediction(
        claim="law",
        verdict="supported",
        statement="The frozen-head response P, without any fitted parameter, has an R2 of at least .98 over det and "
        "noisy cells together and of at least .97 in the transition (.05 < A < 6) of each kind; the slope of the "
        "measured fall on P is within 5 % of 1.",
    ),
    Prediction(
        claim="law",
        verdict="supported",
        statement="P beats b (confidence - 1/V) max(0, 1 - A), whose unfitted R2 over all S3 pairs is .98 already, in "
        "paired intervals over seeds: in the transition of each kind and at every b there. It beats "
        "b (confidence - 1/V) / (1 + A) in det cells and at b <= .05.",
    ),
    Prediction(
        claim="law",
        verdict="supported",
        statement="First order: where A > 3 and b <= .1 the fall is b chi within 25 % or .001; sin2 is below .01 in "
        "det cells with D >= V - 1 and above .02 in noisy ones.",
    ),
    Prediction(
        claim="law",
        verdict="depends on",
        statement="With features from a trunk P is within 20 % at 8 and at 64 samples a context; at one sample it is "
        "an upper bound. More contexts than 256 at one width move fall and P together: R2 of P at least .97 from 128 "
        "to 4096 contexts. Det cells at V = 1024, 4096 and 32768 with A in (.3, 3): largest error of P .01.",
    ),
)


@dataclass(frozen=True, kw_only=True)
class ResponseConfig:
    """One plain head and the smoothings whose effect is to be predicted.

    Attributes:
        head: The plain head with both seeds at 0.
        seed: Data seed i; the model's is 1000 + i, as everywhere in the study.
        smoothings: Label smoothings b > 0.
        source: The experiment that has rows of these heads; ``""`` for none: the smoothed heads are trained here.
        arm: Name of an arm of its own; ``""`` for cells of ``source``.
    """

    head: FitConfig
    seed: int
    smoothings: tuple[float, ...]
    source: str = ""
    arm: str = ""

    @property
    def plain(self) -> FitConfig:
        """What is trained."""
        return _seeded(self.head, self.seed, 1000 + self.seed)

    @property
    def teacher(self) -> TeacherConfig:
        """Of the plain head."""
        return self.plain.teacher

    @property
    def hidden_size(self) -> int:
        """D."""
        return self.head.hidden_size

    @property
    def vocab_size(self) -> int:
        """V."""
        return self.head.teacher.vocab_size

    def columns(self) -> dict[str, Any]:
        """Columns of the plain head, ``source`` and ``arm``."""
        return {**self.plain.columns(), "source": self.source, "arm": self.arm}


def _seeded(config: FitConfig, data: int, model: int) -> FitConfig:
    return replace(config, teacher=replace(config.teacher, seed=data), seed=model)


def respond(config: ResponseConfig, *, device: str = "cpu") -> dict[str, Any]:
    """Train a plain head and predict from it alone what smoothing will do.

    Args:
        config: Which head, which smoothings.
        device: Where to train and to predict.

    Returns:
        Columns of the config and of the training, ``plain_key`` (the row of the plain head in the table of ``source``),
        ``plain_confidence``, ``plain_true_ece``, ``entropy``, ``cross_entropy``, ``uniform_cross_entropy``, ``chi``,
        ``sin_squared`` (mean over contexts), ``resolved_confidence`` (re-solved with the head frozen) and
        ``measurements``, one for each b: ``label_smoothing``, ``smoothed_key`` (as ``plain_key``),
        ``activity_index``, ``predicted_fall`` (P, in the ball), ``sphere_fall``, ``predicted_true_ece_gain``,
        ``predicted_entropy``, ``solved`` and ``sphere_solved`` (the solver's first-order condition),
        ``first_order_fall`` (b chi), ``clipped_fall``, ``rational_fall``, ``exceeds_target``; without a source also
        ``fall``, ``true_ece_gain`` and ``smoothed_converged``, measured.
    """
    wall, cpu = time.perf_counter(), time.process_time()
    plain = config.plain
    fitted = train(plain, device=device)
    before = measure(fitted.head, fitted.teacher, fitted.training, fitted.held_out)
    found, measurements = _predictions(fitted, list(config.smoothings), before, device)
    for b, line in zip(config.smoothings, measurements, strict=True):
        line["smoothed_key"] = config_key(replace(plain, label_smoothing=b)) if config.source else ""
        if not config.source:
            smoothed = train(replace(plain, label_smoothing=b), device=device)
            after = measure(smoothed.head, smoothed.teacher, smoothed.training, smoothed.held_out)
            line["fall"] = before["confidence"] - after["confidence"]
            line["true_ece_gain"] = before["true_ece"] - after["true_ece"]
            line["smoothed_converged"] = course(smoothed)["converged"]
    return {
        **config.columns(),
        **course(fitted),
        "plain_key": config_key(plain) if config.source else "",
        "plain_confidence": before["confidence"],
        "plain_true_ece": before["true_ece"],
        **{name: before[name] for name in ("entropy", "cross_entropy", "uniform_cross_entropy")},
        **found,
        "measurements": measurements,
        "device": device,
        "wall_seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
    }


@torch.no_grad()
def _predictions(
    fitted: Fitted, smoothings: list[float], before: dict[str, float], device: str
) -> tuple[dict[str, float | None], list[dict[str, Any]]]:
    """What the plain head says, and what it says of each b."""
    head, config = fitted.head, fitted.head.config
    weight, hidden = head.weight().double() * config.logit_scale, head.hidden().double()
    shape = {"temperature": config.temperature, "softcap": config.softcap}
    free = config.norm == "free"
    norms = {
        "feature_norm": math.inf if free else config.hidden_size**0.5,
        "weight_decay": config.weight_decay if free else None,
    }
    truth = fitted.teacher.to(device).conditionals
    ball = frozen_head_response(
        weight, hidden, fitted.training, smoothings, features="ball", true_conditionals=truth, **shape, **norms
    )
    sphere = ball
    if not free and config.hidden_size < config.teacher.vocab_size:  # a wider sphere is a ball
        sphere = frozen_head_response(weight, hidden, fitted.training, smoothings, features="sphere", **shape, **norms)
    chi = susceptibility(weight, hidden, fitted.training, weight_decay=config.weight_decay if free else None, **shape)
    angle = stationarity(weight, hidden, **shape).sin_squared.mean()
    p, v = min(before["confidence"], 1.0), config.teacher.vocab_size
    losses = (before["entropy"], before["cross_entropy"], before["uniform_cross_entropy"])
    lines = []
    for i, b in enumerate(smoothings):
        index = float(activity_index(*losses, b))
        lines.append({
            "label_smoothing": b,
            "activity_index": index,
            "predicted_fall": float(ball.fall[i]),
            "sphere_fall": float(sphere.fall[i]),
            "predicted_true_ece_gain": None if ball.true_ece_gain is None else float(ball.true_ece_gain[i]),
            "predicted_entropy": float(ball.entropy[i]),
            "solved": bool(ball.converged[i]),
            "sphere_solved": bool(sphere.converged[i]),
            "first_order_fall": b * chi.chi if math.isfinite(chi.chi) else None,
            "clipped_fall": float(clipped_fall(p, index, v, b)),
            "rational_fall": float(rational_fall(p, index, v, b)) if index > -1 else None,
            "exceeds_target": bool(exceeds_smoothed_target(p, v, b)),
        })  # fmt: skip
    found = {
        "chi": chi.chi if math.isfinite(chi.chi) else None,
        "sin_squared": float(angle),
        "resolved_confidence": float(ball.plain_confidence.mean()),
    }
    return found, lines


def _of_source(name: str, preset: Preset) -> list[ResponseConfig]:
    """The plain heads of an experiment that have smoothed twins, each once."""
    smoothings = defaultdict[FitConfig, list[float]](list)
    for config in experiment(name).configs(preset):
        if config.label_smoothing and config.teacher.vocab_size <= _LARGEST:
            smoothings[replace(config, label_smoothing=0.0)].append(config.label_smoothing)
    return [
        ResponseConfig(
            head=_seeded(plain, 0, 0), seed=plain.teacher.seed, smoothings=tuple(sorted(bs)), source=name
        )
        for plain, bs in smoothings.items()
    ]  # fmt: skip


def _arm(name: str, smoothings: tuple[float, ...], **axes: Any) -> list[ResponseConfig]:
    """Cells of an arm, with the smoothed heads to be trained."""
    plain = heads(smoothings=(0.0,), **axes)
    return [
        ResponseConfig(head=_seeded(head, 0, 0), seed=head.teacher.seed, smoothings=smoothings, arm=name)
        for head in plain
    ]


def configs(preset: Preset) -> list[ResponseConfig]:
    """Every cell of S3, S4 and S5 with V <= 4096, and the arms; ``quick`` takes a few of S3."""
    if preset == "quick":
        small = [
            config
            for config in _of_source("S3", "quick")
            if config.vocab_size == 64 and config.hidden_size in (16, 64) and config.head.softcap is None
            and config.head.temperature == 1.0
        ]  # fmt: skip
        tiny: dict[str, Any] = {"teachers": ("lowrank",), "vocab_sizes": (64,), "hidden_sizes": (16,), "seeds": 3}
        tiny["temperatures"] = (0.25,)
        return [
            *small,
            *_arm("trunk", (0.1,), samples=(1, 8), n_contexts=128, features="trunk", **tiny),
            *_arm("contexts", (0.1,), n_contexts=128, **tiny),
        ]
    shared: dict[str, Any] = {"teachers": ("lowrank",), "vocab_sizes": (256,), "hidden_sizes": (64,), "seeds": 5}
    listed = [config for name in _SOURCES for config in _of_source(name, preset)]
    listed += _arm(
        "trunk", (0.05, 0.1, 0.2), samples=(1, 8, 64), temperatures=(1.0, 0.5, 0.25), features="trunk",
        max_steps=6000, **shared,
    )  # fmt: skip
    for n in (128, 512, 1024, 4096):
        listed += _arm("contexts", (0.1, 0.2), n_contexts=n, temperatures=(1.0, 0.5, 0.25), **shared)
    for v, coefficients in _DET.items():
        seeds, steps = (1, 600) if v > _LARGEST else (5, 3000)
        det: dict[str, Any] = {"teachers": ("det",), "vocab_sizes": (v,), "hidden_sizes": (64,), "seeds": seeds}
        listed += _arm("det", (0.05, 0.1, 0.2), norm_coefficients=coefficients, max_steps=steps, **det)
    return listed


def response_seconds(config: ResponseConfig, device: str) -> float:
    """Estimated seconds of a row: training, and products with Hessians."""
    kind = "cuda" if device.startswith("cuda") else "cpu"
    n, v, d = config.teacher.n_contexts, config.vocab_size, min(config.hidden_size, config.vocab_size)
    product = _LAUNCH[kind] + n * v * (_ENTRY[kind] + 4 * d / _RATE[kind])
    fits = 1 if config.source else 1 + len(config.smoothings)
    return fits * fit_seconds(config.plain, device) + _PRODUCTS * (1 + len(config.smoothings)) * product


def _leftover(config: ResponseConfig) -> int:
    """V = 256 first, then up to 4096, then the largest."""
    return int(config.vocab_size > 256) + int(config.vocab_size > _LARGEST)


def _queue(config: ResponseConfig) -> str:
    return fit_queue(config.plain)


EXPERIMENT = Experiment(
    name="S9",
    title="Does the plain head alone predict how much confidence smoothing takes?",
    compute=respond,
    configs=configs,
    seconds=response_seconds,
    leftover=_leftover,
    queue=_queue,
    columns=(*FitConfig(hidden_size=1).columns(), "source", "arm"),
    predictions=PREDICTIONS,
)
