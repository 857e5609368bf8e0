"""Instruction tuning of a real language model on real questions: what smoothing does to its calibration.

Run by ``python -m analysis.instruction``: ``questions`` builds the questions from data packages, ``run`` tunes the
model with the fused loss and measures it on the way, ``plan`` says what that costs. Needs the extra ``instruction``.
"""
