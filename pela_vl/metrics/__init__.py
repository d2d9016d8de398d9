"""Evaluation metrics of arrays. No model is imported here."""
