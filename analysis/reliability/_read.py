"""Predictions of several files as arrays, with what was left out of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, logsumexp

from ..checks import shares
from ._columns import ROLES, Answer, Misread, choose_columns
from ._files import BadRow, check_files, rows
from ._harness import HarnessFile, is_sample

__all__ = ["FAR", "PredictionFiles", "Predictions", "read_predictions"]

FAR = 1e5  # nats below the others: a probability of 0 at every temperature up to 100


class Predictions(NamedTuple):
    """Predictions by one kind of score, ``(n,)`` each.

    Attributes:
        score: What the probabilities are made of: ``"logits"``, ``"probabilities"``, ``"confidence"``,
            ``"log-likelihood"`` or ``"log-likelihood per character"``.
        confidence: Probability of the prediction.
        correct: Whether it was right.
        nll: Negative log-likelihood of the label in nats; of being right or wrong where only the confidence is known.
        log1m_confidence: log(1 - confidence) where it is known without cancellation, else None.
        logits: Scores of the options ``(n, K)``, finite; options that a row lacks lie 1e5 below.
        label: Number of the right option.
        chosen: Number of the predicted option.
        group: Name of each prediction's group; empty where none was asked for.
    """

    score: str
    confidence: NDArray[np.float64]
    correct: NDArray[Any]
    nll: NDArray[np.float64]
    log1m_confidence: NDArray[np.float64] | None
    logits: NDArray[np.float64]
    label: NDArray[np.int64]
    chosen: NDArray[np.int64]
    group: NDArray[Any]

    def take(self, kept: NDArray[np.bool_]) -> Predictions:
        """Those of ``kept`` ``(n,)``."""
        return self._replace(**{n: x[kept] for n, x in self._asdict().items() if isinstance(x, np.ndarray)})


class PredictionFiles(NamedTuple):
    """What :func:`read_predictions` found.

    Attributes:
        predictions: One for each kind of score: two of multiple-choice samples, else one.
        said: How each file was read.
        left_out: Every row that could not be used.
        rows: Rows in the files, those included.
    """

    predictions: list[Predictions]
    said: list[str]
    left_out: list[BadRow]
    rows: int


def read_predictions(
    files: str | Path | Sequence[str | Path], *, group: str | None = None, **columns: str | Sequence[str] | None
) -> PredictionFiles:
    """Read predictions from CSV, TSV, JSON, JSON lines or Parquet, or from sample files of lm-evaluation-harness.

    Args:
        files: All of one kind; all but Parquet may be gzipped.
        group: Column whose values are groups; ``"file"`` makes each file one. Of sample files a field, also one of
            ``doc``; None makes each task one.
        **columns: Names or patterns of columns, by role: ``confidence``, ``correct``, ``predicted``, ``label``,
            ``logits``, ``probabilities``. What is not named is guessed.

    Returns:
        The predictions and what was left out.

    Raises:
        TypeError: If a role is not known.
        ValueError: If a file is none, columns cannot be found, files are of different kinds, no row can be used,
            "logits" are probabilities, confidences are percentages or labels do not count as the options do.
        OSError: If a file cannot be read.
        ImportError: If a Parquet file is to be read without pyarrow.
    """
    if unknown := sorted(set(columns) - set(ROLES)):
        raise TypeError(f"columns must be of {', '.join(ROLES)}, got {', '.join(unknown)}.")
    asked = {role: [names] if isinstance(names, str) else names for role, names in columns.items()}
    answers, said, left_out, total = list[Answer](), list[str](), list[BadRow](), 0
    kinds, tasks = dict[str, str](), dict[str, str]()  # and the first file of each
    for path in check_files(files):
        file, before, read = str(path), len(answers), None
        for line, row in rows(path):
            total += 1
            if isinstance(row, str):
                left_out.append(BadRow(file, line, row))
                continue
            if read is None:
                sample = is_sample(row) and not any(asked.values())
                read = HarnessFile(path, group) if sample else choose_columns(file, row, asked, group)
            try:
                if isinstance(read, HarnessFile):
                    read.add(line, row)
                else:
                    answers.append(read.take(row))
            except Misread as problem:
                raise ValueError(f"{problem}, in {file}, line {line}.") from None
            except ValueError as problem:
                left_out.append(BadRow(file, line, str(problem)))
        how = "no rows"
        if isinstance(read, HarnessFile):
            found, how, further = read.answers()
            answers, left_out = answers + found, left_out + further
            how = f"lm-evaluation-harness, task {read.task}; {how}"
            if tasks.setdefault(read.task, file) != file and group is None:
                raise ValueError(
                    f"files must be one of each task unless group is 'file', got {tasks[read.task]} and {file}."
                )
        elif read is not None:
            how = read.how(asked)
            past = [bad for bad in left_out if bad.file == file and "option's number" in bad.problem]
            if past and all(answer.label for answer in answers[before:]):  # a wrong label for every other row
                raise ValueError(f"label must count options from 0, got none of 0 in {file} but {past[0].problem}.")
        said.append(f"{file}: {len(answers) - before} predictions; {how}")
        if read is not None:
            kinds.setdefault(read.kind, file)
    if len(kinds) > 1:
        raise ValueError(f"files must be of one kind, got {', '.join(f'{k} ({file})' for k, file in kinds.items())}.")
    if not answers:
        first = "".join(f", such as {file}, line {line}: {problem}" for file, line, problem in left_out[:1])
        raise ValueError(f"files must hold at least one prediction, got {total} rows without{first}.")
    return PredictionFiles(_views(next(iter(kinds)), answers), said, left_out, total)


def _views(kind: str, answers: Sequence[Answer]) -> list[Predictions]:
    views = [_arrays(kind, answers, [a.scores for a in answers])]
    if kind == "logits":
        z = views[0].logits
        if total := shares(np.where(z > z.max() - FAR / 2, z, 0)):
            raise ValueError(
                f"logits must be logits, got rows without a negative number that sum to {total}: read these columns as "
                "probabilities."
            )
    scores = [a.per_character for a in answers if a.per_character is not None]
    if scores:
        views.append(_arrays(f"{kind} per character", [a for a in answers if a.per_character is not None], scores))
    return views


def _arrays(score: str, answers: Sequence[Answer], scores: Sequence[Sequence[float]]) -> Predictions:
    each = np.arange(len(answers))
    z = np.full((len(answers), max(map(len, scores))), -np.inf)
    for line, values in zip(z, scores, strict=True):
        line[: len(values)] = values
    label = np.array([a.label for a in answers])
    given = np.array([a.confidence for a in answers if a.confidence is not None])
    chosen = z.argmax(-1) if score != "confidence" else np.zeros_like(label)
    log_p = log_softmax(z, -1)
    rest = np.where(chosen[:, None] == np.arange(z.shape[1]), -np.inf, log_p)
    return Predictions(
        score=score,
        confidence=given if given.size else np.exp(log_p[each, chosen]),
        correct=chosen == label,
        nll=-log_p[each, label],
        log1m_confidence=None if given.size else np.asarray(logsumexp(rest, axis=-1)),
        logits=np.maximum(z, z.max(-1, keepdims=True) - FAR),
        label=label,
        chosen=chosen,
        group=np.array([a.group for a in answers]),
    )
