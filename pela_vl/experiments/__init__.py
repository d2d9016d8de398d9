"""The paper's comparisons, as grids of the commands that a user types."""
