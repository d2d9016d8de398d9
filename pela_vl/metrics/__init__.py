"""Evaluation metrics: arrays in, numbers out; no model is known here."""
