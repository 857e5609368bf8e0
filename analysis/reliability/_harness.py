"""Sample files of lm-evaluation-harness (``--log_samples``) with multiple-choice tasks, of version 0.4.

A line holds one question: the log-likelihood of each option, the target, what was asked, and the metrics. It does not
hold the options themselves: they are what was asked for, less a delimiter, and their lengths, by which ``acc_norm``
divides, follow from these.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ._columns import Answer, look_up, number
from ._files import BadRow

__all__ = ["HarnessFile", "is_sample"]


def is_sample(row: Mapping[str, Any]) -> bool:
    """Whether this is a line of a sample file."""
    return {"doc_id", "target", "arguments", "filtered_resps", "filter"} <= row.keys()


class _AnsweredQuestion(NamedTuple):
    line: int
    answer: Answer
    options: list[str]  # with the delimiter
    acc_norm: float | None


class HarnessFile:
    """The questions of one file.

    Args:
        path: The file, whose name tells the task.
        group: Column of the group, also inside of ``doc``; ``"file"``, or None for the task.
    """

    kind = "log-likelihood"

    def __init__(self, path: Path, group: str | None) -> None:
        named = re.fullmatch(r"samples_(.+)_\d{4}-\d\d-\d\dT[\d.:-]+\.jsonl(\.gz)?", path.name)
        self.file, self.task, self.group = str(path), named[1] if named else path.name.partition(".")[0], group
        self.questions: list[_AnsweredQuestion] = []
        self._seen: dict[str, int] = {}

    def add(self, line: int, row: Mapping[str, Any]) -> None:
        """Take a line in; ValueError says why it is no question of several options with one of them right."""
        if not is_sample(row):
            raise ValueError("is no line of a sample file")
        answers, asked = row["filtered_resps"], _asked(row["arguments"])
        if not isinstance(answers, list) or not all(isinstance(a, list) and len(a) == 2 for a in answers):
            raise ValueError("filtered_resps must be log-likelihoods of options: the task is no multiple choice")
        scores = [number("log-likelihood", value) for value, _ in answers]
        half = len(asked) // 2
        if half > 1 and asked[0][0] and not any(context for context, _ in asked[half:]):
            scores, asked = scores[:half], asked[:half]  # of acc_mutual_info: the second half is without context
        if len(scores) != len(asked) or len(scores) < 2 or not np.isfinite(scores).all() or max(scores) > 1e-3:
            raise ValueError("must have a finite log-likelihood, at most 0, of each of several options")
        options = [text for _, text in asked]
        name = self.group or ""
        group = {"": self.task, "file": self.file}.get(name)
        if group is None:
            group = str(look_up(row, name if name.partition(".")[0] in row else f"doc.{name}"))
        label = _label(str(row["target"]), options, scores, row.get("acc"))
        if self._seen.setdefault(str(row["doc_id"]), line) != line:
            raise ValueError(f"doc_id {row['doc_id']} was in line {self._seen[str(row['doc_id'])]} before")
        self.questions.append(_AnsweredQuestion(line, Answer(scores, label, group), options, row.get("acc_norm")))

    def answers(self) -> tuple[list[Answer], str, list[BadRow]]:
        """The predictions, how they were read, and the questions that have no score per character."""
        if any(len(set(q.options)) == 1 for q in self.questions):
            said = "options are contexts, of lengths that the file does not tell: not scored per character"
            return [q.answer for q in self.questions], said, []
        # The delimiter is a space or line end unless some option does not begin with one or acc_norm says otherwise.
        spaced = all(text[:1].isspace() for q in self.questions for text in q.options)
        found = {cut: self._per_character(cut) for cut in ((1, 0) if spaced else (0,))}
        cut = min(found, key=lambda cut: len(found[cut][1]))
        return found[cut][0], f"lengths of options count {'no' if cut else 'the'} space before them", found[cut][1]

    def _per_character(self, cut: int) -> tuple[list[Answer], list[BadRow]]:
        answers, left_out = list[Answer](), list[BadRow]()
        for line, answer, options, acc_norm in self.questions:
            lengths = [len(text) - cut for text in options]
            scores = [s / length if length else 0 for s, length in zip(answer.scores, lengths, strict=True)]
            if not all(lengths):
                left_out.append(BadRow(self.file, line, "an option is empty: not scored per character"))
            elif acc_norm in (0, 1) and (int(np.argmax(scores)) == answer.label) != bool(acc_norm):
                problem = f"acc_norm is {acc_norm:g}, the log-likelihoods per character say otherwise"
                left_out.append(BadRow(self.file, line, problem))
            else:
                answer = answer._replace(per_character=scores)
            answers.append(answer)
        return answers, left_out


def _asked(arguments: Any) -> list[tuple[str, str]]:
    """Context and continuation of each request; earlier files have lists."""
    requests = list(arguments.values()) if isinstance(arguments, Mapping) else arguments
    # In a table of rows with unlike numbers of options those that a row lacks are None.
    asked = [one for one in requests if one is not None] if isinstance(requests, list) else []
    found = [tuple(one.values()) if isinstance(one, Mapping) else one for one in asked]
    texts = (isinstance(one, (tuple, list)) and [type(text) for text in one] == [str, str] for one in found)
    if not found or not all(texts):
        raise ValueError("arguments must be a context and an option each: the task is no multiple choice")
    return found


def _label(target: str, options: Sequence[str], scores: Sequence[float], acc: Any) -> int:
    """The right option: the target says its number or text, or nothing where all have one text; ``acc`` decides."""
    same = len(set(options)) == 1
    meant = [i for i, text in enumerate(options) if target in (text, text.lstrip()) or same]
    if re.fullmatch(r"\d{1,9}", target, re.ASCII) and int(target) < len(options):
        meant.insert(0, int(target))
    if acc not in (None, 0, 1):
        raise ValueError(f"acc must be 0 or 1, got {acc!r:.40}: the task grades its answers")
    agreeing = [i for i in meant if acc is None or (i == int(np.argmax(scores))) == bool(acc)]
    if meant and not agreeing:
        raise ValueError(f"acc is {acc:g}, the log-likelihoods say otherwise")
    if not agreeing or (same and len(agreeing) > 1):
        raise ValueError(f"target must name one of {len(options)} options, got {target!r:.40}")
    return agreeing[0]
