"""ALBEF: encoders, task models, EMA models, losses."""
