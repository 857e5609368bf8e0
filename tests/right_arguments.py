"""Public functions of numbers, each with arguments that are right: what tests spoil one by one."""

from __future__ import annotations

from typing import Any

import numpy as np

C, Y = np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, True, False, True])
Z, T = np.array([[2.0, 0.0], [0.5, 1.5], [1.0, -1.0], [0.0, 3.0]]), np.array([0, 1, 1, 1])
P, Q = np.array([[0.7, 0.3], [0.4, 0.6]]), np.array([[0.6, 0.4], [0.5, 0.5]])
M, V, D, B = np.array([3.0, 6.0]), np.array([16, 32]), np.array([4, 8]), np.array([0.1, 0.2])
S = np.array([1.0, 3.0])
N = 4

# Every public function of numbers, with arguments that are right: floating ones as floats, whole ones as integers.
CALLS: dict[str, dict[str, Any]] = {
    "aligned_cap": {"norm_product": M, "vocab_size": V, "hidden_size": D},
    "attained_gap": {"norm_product": M, "vocab_size": 4, "hidden_size": 2, "steps": 1},
    "best_confidence": {"norm_product": M, "vocab_size": 4, "hidden_size": 2, "steps": 1},
    "confidence_cap": {"norm_product": M, "vocab_size": V, "hidden_size": D, "temperature": S, "softcap": M},
    "confidence_to_gap": {"confidence": C[:2], "vocab_size": V},
    "entropy_floor": {"logit_norm": M, "vocab_size": V},
    "frobenius_cap": {"frobenius_norm": M, "feature_norm_max": S, "vocab_size": V},
    "gap_to_confidence": {"gap": M, "vocab_size": V},
    "logit_norm_cap": {"logit_norm": M, "vocab_size": V},
    "margin_bounds": {"vocab_size": V, "hidden_size": D},
    "max_gap": {"norm_product": M, "vocab_size": V, "temperature": S, "softcap": M},
    "packing_cap": {"norm_product": M, "vocab_size": V, "hidden_size": D},
    "random_code_confidence": {"norm_product": M, "vocab_size": V, "hidden_size": D, "softcap": M},
    "rank_cap": {"norm_product": M, "vocab_size": V, "hidden_size": D},
    "rank_gap": {"norm_product": M, "vocab_size": V, "hidden_size": D},
    "simplex_cap": {"norm_product": M, "vocab_size": V},
    "single_token_cap": {"norm_product": M, "vocab_size": V},
    "softcap_gap": {"norm_product": M, "vocab_size": V, "softcap": M, "temperature": S},
    "spectral_cap": {"spectral_norm": M, "feature_norm_max": S, "vocab_size": V, "hidden_size": D},
    "activity_index": {"entropy": S, "cross_entropy": S, "uniform_cross_entropy": M + 4, "label_smoothing": B},
    "dirichlet_concentration": {"label_smoothing": B, "vocab_size": V, "count": D},
    "effectiveness_ratio": {"norm_product": M, "vocab_size": V, "label_smoothing": B, "temperature": S, "softcap": M},
    "loss_floor": {"label_smoothing": B, "vocab_size": V},
    "match_moments": {"weight": Z, "probabilities": np.full((2, 4), 0.25)},
    "optimal_confidence": {"label_smoothing": B, "vocab_size": V},
    "optimal_gap": {"label_smoothing": B, "vocab_size": V},
    "optimal_gap_under_cap": {"norm_product": M, "vocab_size": V, "label_smoothing": B, "temperature": S},
    "predicted_activity": {"norm_product": M, "vocab_size": V, "hidden_size": D, "label_smoothing": B},
    "restoring_temperature": {"norm_product": M, "vocab_size": V, "label_smoothing": B, "softcap": M},
    "smooth": {"probabilities": P, "label_smoothing": B},
    "smoothed_calibration_error": {"probabilities": P, "label_smoothing": 0.1, "weights": S},
    "smoothing_penalty": {"logits": Z},
    "unsmooth": {"probabilities": P, "label_smoothing": B},
    "weighted_svd_head": {"probabilities": P, "hidden_size": 1},
    "clipped_fall": {"confidence": C[:2], "activity_index": S, "vocab_size": V, "label_smoothing": B},
    "exceeds_smoothed_target": {"confidence": C[:2], "vocab_size": V, "label_smoothing": B},
    "rational_fall": {"confidence": C[:2], "activity_index": S, "vocab_size": V, "label_smoothing": B},
    "scale_gap": {"entropy": S, "cross_entropy": S},
    "smoothing_slope": {"entropy": S, "cross_entropy": S, "uniform_cross_entropy": M + 4, "label_smoothing": B},
    "fit_norm_ball": {"vocab_size": 4, "hidden_size": 4, "norm_product": M, "label_smoothing": B, "steps": 1},
    "asymptotic_confidence": {"logit_std": S, "vocab_size": V},
    "asymptotic_entropy": {"logit_std": S, "vocab_size": V},
    "asymptotic_log_partition": {"logit_std": S, "vocab_size": V},
    "asymptotic_participation": {"logit_std": S, "vocab_size": V},
    "critical_hidden_size": {"vocab_size": V, "gain": S, "row_std": S},
    "critical_logit_std": {"vocab_size": V},
    "expected_confidence": {"logit_std": S, "vocab_size": V},
    "expected_entropy": {"logit_std": S, "vocab_size": V},
    "expected_log_partition": {"logit_std": S, "vocab_size": V},
    "freezing_temperature": {"logit_std": S, "vocab_size": V},
    "participation": {"logit_std": S, "vocab_size": V},
    "planted_confidence": {"norm_product": M, "vocab_size": V, "hidden_size": D},
    "planted_norm_product": {"vocab_size": V, "hidden_size": D, "confidence": C[:2]},
    "spherical_log_partition": {"norm_product": M, "vocab_size": V, "hidden_size": D},
    "answer_confidence": {"token_log_probability": -Z[:, None] - 3, "mask": np.ones((N, 1, 2), bool)},
    "calibration_error": {"confidence": C, "correct": Y},
    "fit_isotonic": {"confidence": C, "correct": Y},
    "fit_platt": {"confidence": C, "correct": Y},
    "fit_temperature": {"logits": Z, "target": T},
    "fit_vector": {"logits": Z, "target": T},
    "frequency_groups": {"counts": np.array([3, 1, 5])},
    "option_confidence": {"log_probability": np.log(P / 2)},
    "reliability_table": {"confidence": C, "correct": Y},
    "risk_at_coverage": {"confidence": C, "correct": Y, "coverage": C[:2]},
    "risk_coverage_curve": {"confidence": C, "correct": Y},
    "selective_scores": {"confidence": C, "correct": Y},
    "smooth_calibration_error": {"confidence": C, "correct": Y},
    "sorted_rms_error": {"confidence": C, "correct": Y},
    "true_calibration_error": {"p_model": P, "p_true": Q, "weight": S},
    "true_decomposition": {"p_model": P, "p_true": Q, "weight": S},
    "unsmooth_confidence": {"confidence": C[:2], "label_smoothing": B, "vocab_size": V},
    "frobenius_gap": {"frobenius_norm": M, "feature_norm_max": S, "vocab_size": V},
    "packing_gap": {"norm_product": M, "vocab_size": V, "hidden_size": D},
    "score_predictions": {"confidence": C, "correct": Y},
    "spectral_gap": {"spectral_norm": M, "feature_norm_max": S, "vocab_size": V, "hidden_size": D},
    "wilson_interval": {"correct": np.array([3.5, 4.0]), "samples": np.array([5, 8])},
}
# What takes no bare numbers, or only those of another function: models, files, tables, statistics of a head, blocks;
# tested with its module.
ELSEWHERE = {
    "audit_model", "binned_true_error", "course", "draw_audit", "fit", "fit_head_temperature",
    "from_statistics", "frozen_head_response", "head_of", "hidden_states", "load_model", "losses_of", "make_teacher",
    "measure", "merging_is_exact", "packaged_gemma", "packaged_smollm2", "programme_gap", "python_text", "random_streams", "read_text",
    "recommendation",
    "score_against_truth", "score_tokens", "stationarity", "susceptibility", "tied_accuracy", "train", "uniform_index",
    "verdict", "describe", "draw_predictions", "measure_predictions", "read_predictions",
}  # fmt: skip
