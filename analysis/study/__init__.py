"""The study: named grids of experiments, and the paired effects of smoothing in their rows."""
