"""The demo: the whole method on scenes, through the very commands a user types."""
