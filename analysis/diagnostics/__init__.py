"""What a trained head allows: scale gap, slope of the smoothed loss, and the geometry that decides which caps bind."""

from ._geometry import CapVerdict, HeadGeometry
from ._losses import Losses, losses_of
from ._slopes import scale_gap, smoothing_slope

__all__ = ["CapVerdict", "HeadGeometry", "Losses", "losses_of", "scale_gap", "smoothing_slope"]
