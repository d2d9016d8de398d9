"""Public downloads, as they are, to the lists that data/sets reads."""
