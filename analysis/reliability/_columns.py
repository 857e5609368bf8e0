"""Which columns of a file hold the predictions, as named or guessed, and what a row says in them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

__all__ = ["ROLES", "Answer", "Layout", "Misread", "choose_columns", "look_up", "number"]

# What each role may be called where no option names it, in lower case.
_NAMES = {
    "confidence": ("confidence", "conf", "max_prob", "max_probability", "top_prob", "top_probability"),
    "correct": ("correct", "is_correct", "correctness", "right", "hit", "acc", "exact_match"),
    "predicted": ("predicted", "prediction", "pred", "y_pred"),
    "label": ("label", "target", "gold", "answer", "y_true"),
    "logits": ("logits", "logprobs", "log_probs", "log_probabilities"),
    "probabilities": ("probabilities", "probs"),
}
ROLES = tuple(_NAMES)
# One column an option: logit_0, logit_1, ... or logit_A, logit_B, ...; prob_0, prob_1, ... or p0, p1, ...
_SEVERAL = {"logits": r"(logits?|logprobs?|log_probs?)", "probabilities": r"(p|probs?|probability)"}
_WHOLE = re.compile(r"\d{1,9}", re.ASCII)
_OPTION = r"[_.]?(\d+|(?<=[_.])[a-z])"
_LAYOUTS = (
    ("logits", "label"), ("probabilities", "label"), ("confidence", "correct"), ("confidence", "predicted", "label"),
)  # fmt: skip
_TRUTH = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}
_MISSING = {"", "nan", "NaN", "NA", "N/A", "<NA>", "None", "null", "NULL"}  # as tables write what is not there
_SUM = 0.01  # probabilities may be rounded
_PERCENT = "divide percentages by 100"


class Misread(ValueError):
    """What is wrong with a row shows that the others, too, are not what they are read as."""


class Answer(NamedTuple):
    """One prediction: scores of its options, of which a softmax makes probabilities, and which of them is right."""

    scores: Sequence[float]
    label: int
    group: str
    confidence: float | None = None  # as the file has it: of option 0 where only being right or wrong is known
    per_character: Sequence[float] | None = None


class Layout(NamedTuple):
    """Role -> columns of a file, what is known of the predictions (its first role) before the rest."""

    columns: Mapping[str, Sequence[str]]
    group: str | None
    file: str

    @property
    def kind(self) -> str:
        """Logits, probabilities or confidence."""
        return next(iter(self.columns))

    @property
    def names(self) -> list[str]:
        """What the columns of the options, if there are several, call them: their names less what they share."""
        columns = self.columns[self.kind]
        stem = re.sub(r"\d+$", "", columns[0]) if columns[0][-1].isdigit() else re.sub("[^_.]*$", "", columns[0])
        return [name.removeprefix(stem) for name in columns] if all(stem in c for c in columns) else list(columns)

    def how(self, asked: Mapping[str, Sequence[str] | None]) -> str:
        """Which columns were read, which of them were guessed, and how labels count if not from 0."""
        each = []
        for role, names in self.columns.items():
            shown = ", ".join(names) if len(names) < 4 else f"{names[0]}, {names[1]}, ..., {names[-1]}"
            each.append(f"{role} from {shown}" + ("" if asked.get(role) else " (guessed)"))
        if len(self.columns[self.kind]) > 1 and all(map(_WHOLE.fullmatch, self.names)) and min(map(int, self.names)):
            each.append(f"labels count from {min(map(int, self.names))}, as the columns do")
        return "; ".join(each)

    def take(self, row: Mapping[str, Any]) -> Answer:
        """The prediction of a row; ValueError says what is wrong with it."""
        group = self.file if self.group == "file" else "" if self.group is None else str(look_up(row, self.group))
        if self.kind == "confidence":
            p = number("confidence", self._one(row, "confidence"))
            if not 0 <= p <= 1 + 1e-6:
                problem = f"confidence must be in [0, 1], got {p:g}"
                raise Misread(f"{problem} ({_PERCENT})") if 2 <= p <= 100 else ValueError(problem)
            p = min(p, 1.0)
            return Answer([_log(p), _log(1 - p)], 0 if self._right(row) else 1, group, p)
        names, values = self._options(row)
        label = _option(self._label(row, "label", names), names, len(values))
        if self.kind == "logits":
            if not math.isfinite(max(values)):  # -inf is an option that cannot be
                raise ValueError("logits must be finite or -inf, and not all -inf")
            return Answer(values, label, group)
        if min(values) < 0 or abs(sum(values) - 1) > _SUM:
            problem = f"probabilities must be at least 0 and sum to 1, got a sum of {sum(values):g}"
            raise Misread(f"{problem} ({_PERCENT})") if abs(sum(values) - 100) < 1 else ValueError(problem)
        return Answer([_log(p) for p in values], label, group, min(max(values), 1.0))

    def _one(self, row: Mapping[str, Any], role: str) -> Any:
        return look_up(row, self.columns[role][0])

    def _label(self, row: Mapping[str, Any], role: str, names: Sequence[str] = ()) -> str:
        if (text := _plain(self._one(row, role))) in _MISSING and text not in names:
            raise ValueError(f"{role} is missing, got {text!r}")
        return text

    def _right(self, row: Mapping[str, Any]) -> bool:
        if "correct" not in self.columns:
            return self._label(row, "predicted") == self._label(row, "label")
        value = self._one(row, "correct")
        if (text := str(value).strip().lower()) not in _TRUTH:
            raise ValueError(f"correct must be true or false, 1 or 0, got {value!r:.40}")
        return _TRUTH[text]

    def _options(self, row: Mapping[str, Any]) -> tuple[list[str], list[float]]:
        """Names of the options, if they have any, and their values."""
        columns, names = self.columns[self.kind], list[str]()
        values = look_up(row, columns[0])
        if len(columns) > 1:
            names = self.names
            values = [look_up(row, name) for name in columns]
        elif isinstance(values, Mapping):
            names, values = [_plain(name) for name in values], list(values.values())
        elif isinstance(values, str):  # of a CSV: [0.1, 0.9] or [0.1 0.9]
            values = re.findall(r"[^\s,;()[\]]+", values)
        if not isinstance(values, Sequence) or len(values) < 2:
            raise ValueError(f"{self.kind} must hold at least two numbers, got {values!r:.40}")
        return names, [number(self.kind, value) for value in values]


def choose_columns(
    file: str, row: Mapping[str, Any], asked: Mapping[str, Sequence[str] | None], group: str | None
) -> Layout:
    """The columns to read of a file whose first row this is; ``asked`` are names or patterns that options gave."""
    given = {role: _named(file, role, patterns, row) for role, patterns in asked.items() if patterns}
    if group not in (None, "file"):
        _named(file, "group", [group], row)
    for roles in _LAYOUTS:
        found = {role: given.get(role) or _guessed(role, list(row)) for role in roles}
        if set(given) <= set(roles) and all(found.values()):
            for role, columns in found.items():
                if len(columns) > 1 and (role not in _SEVERAL or columns[0].lower() in _NAMES[role]):
                    raise ValueError(f"{role} must name one column of {file}, which has {', '.join(columns)}.")
            return Layout(found, group, file)
    raise ValueError(
        f"{file} must have columns for logits or probabilities and label, for confidence and correct, or for "
        f"confidence, predicted and label: name them, got {', '.join(given) or 'none'} and columns {', '.join(row)}."
    )


def look_up(row: Mapping[str, Any], name: str) -> Any:
    """A value by its name, where ``a.b`` is also ``b`` inside of ``a``; ValueError if it is not there or empty."""
    value: Any = row
    for part in [name] if name in row else name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    if value is None or value == "":
        raise ValueError(f"{name} is empty")
    return value


def number(name: str, value: Any) -> float:
    """A number that is not NaN; ValueError if it is none."""
    try:
        found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        found = math.nan
    if found != found:
        raise ValueError(f"{name} must be a number, got {value!r:.40}")
    return found


def _named(file: str, role: str, patterns: Sequence[str], row: Mapping[str, Any]) -> list[str]:
    found = dict[str, None]()
    for pattern in patterns:
        inside = pattern in row or isinstance(row.get(pattern.partition(".")[0]), Mapping)
        matching = [pattern] if inside else [name for name in row if fnmatchcase(name, pattern)]
        if not matching:
            raise ValueError(f"{role} must name a column of {file}, got {pattern!r}; it has {', '.join(row)}.")
        found |= dict.fromkeys(matching)
    return list(found)


def _guessed(role: str, names: Sequence[str]) -> list[str]:
    exact = [name for name in names if name.lower() in _NAMES[role]]
    pattern = _SEVERAL.get(role, "$") + _OPTION
    several = [name for name in names if re.fullmatch(pattern, name.lower())]
    return exact or (several if len(several) > 1 else [])


def _log(p: float) -> float:
    return math.log(p) if p else -math.inf


def _plain(value: Any) -> str:
    """A label as text; 2.0, as tables write whole numbers beside missing ones, is 2."""
    text = str(value).strip()
    return text[:-2] if re.fullmatch(r"-?\d+\.0", text) else text


def _option(text: str, names: Sequence[str], count: int) -> int:
    """Number of the option that a label means: by its name, else by its number from 0 or its letter."""
    if all(map(_WHOLE.fullmatch, (text, *names))):  # p01 is option 1
        text, names = str(int(text)), [str(int(name)) for name in names]
        if names and text not in names:  # 0 of 1 to 4: every other label would be the option before
            raise Misread(f"label must count options as their names do, {', '.join(names):.80}, got {text}")
    if names:
        if text not in names:
            raise ValueError(f"label must be one of {', '.join(names):.80}, got {text!r:.40}")
        return names.index(text)
    if re.fullmatch("[A-Z]", text):
        text = str(ord(text) - ord("A"))
    if not (_WHOLE.fullmatch(text) and int(text) < count):
        raise ValueError(f"label must be an option's number from 0 to {count - 1} or its letter, got {text:.40}")
    return int(text)
