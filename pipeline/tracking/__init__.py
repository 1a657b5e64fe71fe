"""Weights & Biases: one run per stage, one summary run per sweep; uploads of offline runs; a saved view."""
