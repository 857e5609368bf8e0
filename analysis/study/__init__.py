"""The study: named grids of experiments, and the paired effects of smoothing in their rows."""

from .effects import cell_effects, paired_effects
from .grids import GRIDS, PRESETS, grid

__all__ = ["GRIDS", "PRESETS", "cell_effects", "grid", "paired_effects"]
