"""Theory, simulation and measurement of confidence ceilings and of what label smoothing does below them.

The functions that one meets first are importable from here, all others from their module, such as
``analysis.calibration.fit_platt``. Both are loaded at first use, so that ``import analysis`` costs nothing and theory
never loads torch:

>>> import analysis
>>> round(float(analysis.simplex_cap(5.0, 256)), 3)
0.372
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

__version__ = "0.3.0"  # of the source that runs; pyproject.toml reads it, so that no built metadata says another

# Module -> those of its public names that make sense without it, and are importable from here as well. The one list; a
# test holds it against each module's __all__.
_PUBLIC = {
    "caps": """attained_gap best_confidence confidence_cap confidence_to_gap entropy_floor gap_to_confidence
        margin_bounds max_gap rank_cap simplex_cap single_token_cap softcap_gap spectral_cap""",
    "smoothing": """activity_index effectiveness_ratio optimal_confidence optimal_gap predicted_activity
        restoring_temperature smooth smoothed_calibration_error unsmooth""",
    "diagnostics": "HeadGeometry losses_of scale_gap smoothing_slope",
    "random_energy": "critical_hidden_size critical_logit_std freezing_temperature",
    "norm_ball": "fit_norm_ball",
    "head_shapes": "HEAD_SHAPES",
    "calibration": """CalibrationState calibration_error fit_head_temperature fit_temperature reliability_table
        selective_scores smooth_calibration_error true_calibration_error""",
    "reliability": "",
    "response": "frozen_head_response stationarity susceptibility",
    "language_models": "load_model",
    "audit": "audit_model",
    "teachers": "make_teacher",
    "bottleneck": "",
}
# Machinery of arguments, grids, files and drawing, whose names (run, grid, ...) say little without their module:
# analysis.lab.sweep.run.
_MACHINERY = ("checks", "claims", "command", "lab", "notebook", "plots", "projected", "study")
# Modules that are commands only: python -m analysis.NAME.
_COMMANDS: tuple[str, ...] = ("caps_table", "instruction", "real_tuning", "transition_table")
_HOME = {name: module for module, names in _PUBLIC.items() for name in names.split()}

__all__ = [*_PUBLIC, *_MACHINERY, *_HOME]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC or name in _MACHINERY:
        return import_module(f".{name}", __name__)
    if name in _HOME:
        value = getattr(import_module(f".{_HOME[name]}", __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{_elsewhere(name)}")


def _elsewhere(name: str) -> str:
    """Where a name lives that some module offers and this one does not; found without importing any."""
    folder = Path(__file__).parent
    for module in () if name.startswith("_") else _PUBLIC:
        path = folder / module / "__init__.py"
        text = (path if path.exists() else folder / f"{module}.py").read_text(encoding="utf-8")
        if f'"{name}"' in text.partition("__all__")[2].partition("]")[0]:
            return f": it is {__name__}.{module}.{name}"
    return ""


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
