"""Theory, simulation and measurement of confidence ceilings and of what label smoothing does below them.

Public functions are importable from here and loaded with their module at first use, so that ``import analysis`` costs
nothing and theory never loads torch:

>>> import analysis
>>> round(float(analysis.simplex_cap(5.0, 256)), 3)
0.372
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

# Module -> its public names. __init__.pyi tells editors and type checkers the same; a test compares both with each
# module's __all__.
_PUBLIC = {
    "caps": """ConfidenceCap MarginBounds aligned_cap attained_gap best_confidence confidence_cap confidence_to_gap
        entropy_floor frobenius_cap gap_to_confidence logit_norm_cap margin_bounds max_gap packing_cap
        random_code_confidence rank_cap rank_gap simplex_cap single_token_cap softcap_gap spectral_cap""",
    "smoothing": """LowRankHead MatchedFeatures SmoothingPenalty activity_index dirichlet_concentration
        effectiveness_ratio loss_floor match_moments optimal_confidence optimal_gap optimal_gap_under_cap
        predicted_activity restoring_temperature smooth smoothed_calibration_error smoothing_penalty unsmooth
        weighted_svd_head""",
    "response": """FrozenHeadResponse Stationarity Susceptibility clipped_fall exceeds_smoothed_target
        frozen_head_response rational_fall stationarity susceptibility""",
    "heads": """Audit LoadedModel audit_model draw_audit load_model packaged_smollm2 python_text read_text verdict""",
    "diagnostics": """CapVerdict HeadGeometry Losses losses_of scale_gap smoothing_slope""",
    "norm_ball": """NormBallHead fit_norm_ball""",
    "head_shapes": """HEAD_SHAPES HeadShape""",
    "random_energy": """asymptotic_confidence asymptotic_entropy asymptotic_log_partition asymptotic_participation
        critical_hidden_size critical_logit_std expected_confidence expected_entropy expected_log_partition
        freezing_temperature participation planted_confidence planted_norm_product spherical_log_partition""",
    "calibration": """CalibrationState ErrorInterval IsotonicMap NoiseFloor OptionConfidence PlattMap RiskCoverage
        SelectiveScores SignedError SortedError TemperatureFit TrueDecomposition VectorMap answer_confidence
        calibration_error fit_head_temperature fit_isotonic fit_platt fit_temperature fit_vector frequency_groups
        from_statistics option_confidence reliability_table risk_at_coverage risk_coverage_curve selective_scores
        smooth_calibration_error sorted_rms_error true_calibration_error true_decomposition unsmooth_confidence
        wilson_interval""",
    "teachers": """DeterministicTeacher LogLinearTeacher Observations Teacher TeacherConfig TeacherKind make_teacher
        random_streams""",
    "bottleneck": """FitConfig Fitted SoftmaxBottleneck fit train""",
}
# Machinery of grids, files and drawing, whose names (run, grid, ...) say little without their module:
# analysis.lab.sweep.run.
_MACHINERY = ("claims", "command", "instruction", "lab", "notebook", "plots", "study")
# Modules that are commands only: python -m analysis.NAME.
_COMMANDS: tuple[str, ...] = ("audit", "caps_table", "transition_table")
_HOME = {name: module for module, names in _PUBLIC.items() for name in names.split()}

__all__ = [*_PUBLIC, *_MACHINERY, *_HOME]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC or name in _MACHINERY:
        return import_module(f".{name}", __name__)
    if name in _HOME:
        value = getattr(import_module(f".{_HOME[name]}", __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
