"""Evaluation passes over data that give scores: retrieval, answering, localisation."""
