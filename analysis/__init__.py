"""Theory, simulation and measurement of confidence ceilings and label smoothing."""
