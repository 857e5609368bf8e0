"""Instruction tuning of real language models: what smoothing does to their calibration.

Two commands. ``python -m analysis.instruction``: ``questions`` builds questions from data packages, on which a chat
model is tuned and examined. ``python -m analysis.real_tuning``: a model, base models too, is tuned on files of pairs
and asked files of questions, in token ids that may come from elsewhere (``files``, ``token_files``, ``vocabulary``,
``pair_*``, ``choice_scores``).
"""
