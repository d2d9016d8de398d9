"""ALBEF: encoders, task models, losses, feature queues."""
