"""The laboratory: grids of configs become rows, and rows become tables that say where they come from."""
