"""Weights & Biases: one run per stage, one summary run per sweep; sending offline runs; a saved view."""
