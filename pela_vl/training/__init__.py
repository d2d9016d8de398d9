"""One training run: assembly, the loop, back ends, optimiser, schedule, log."""
