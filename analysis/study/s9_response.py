"""S9: how well the plain head alone predicts the fall that smoothing brings, in every cell of S3, S4 and S5 and beyond.

The plain heads of those experiments are trained again, as a table holds numbers and no weights, and everything that can
be said of smoothing without smoothing is computed from them; the falls themselves are in the tables. Three new arms
have no rows elsewhere and train their smoothed heads too: a trunk at 1, 8 and 64 samples a context, 128 to 4096
contexts, and deterministic cells in the transition at V = 1024 to 32768.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any

import torch

from ..bottleneck import FitConfig, Fitted, course, measure, train
from ..lab.records import config_key
from ..lab.registry import Experiment, Prediction
from ..response import (
    clipped_fall,
    exceeds_smoothed_target,
    frozen_head_response,
    rational_fall,
    stationarity,
    susceptibility,
)
from ..smoothing import activity_index
from .grids import fit_queue
from .s9_grid import LARGEST, ResponseConfig, configs, response_seconds

__all__ = ["EXPERIMENT", "respond"]

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
        solved = torch.from_numpy(ball.plain_hidden).to(weight)  # the same plain optimum, where its norms bind
        sphere = frozen_head_response(weight, solved, fitted.training, smoothings, features="sphere", **shape, **norms)
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


def _leftover(config: ResponseConfig) -> int:
    """What the verdict needs most first: S3's cells of few dimensions, where the transition is; larger V later.

    Last the heads of D = 4 whose norms are free: most of them never converge, and are in no verdict.
    """
    if config.head.norm == "free" and config.hidden_size == 4:
        return 4
    if config.vocab_size > 256:
        return 2 + int(config.vocab_size > LARGEST)
    return int(config.source != "S3" or config.hidden_size > 64)


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
