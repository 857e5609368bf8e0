"""Instruction tuning of a real language model on real questions: what smoothing does to its calibration.

Run by ``python -m analysis.instruction``: ``questions`` builds the questions from data packages, ``run`` tunes the
model with the fused loss and measures it on the way, ``plan`` says what that costs. Needs the extra ``instruction``.
"""

from .questions import Question, QuestionSet, build_questions, read_questions, write_questions
from .tuning import InstructionConfig, configs, tune

__all__ = [
    "InstructionConfig",
    "Question",
    "QuestionSet",
    "build_questions",
    "configs",
    "read_questions",
    "tune",
    "write_questions",
]
