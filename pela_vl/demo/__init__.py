"""The demo: the whole method on scenes, run by the same commands that a user types."""
