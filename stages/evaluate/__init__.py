"""Measure a checkpoint: pass@k on held-out problems, and the shape of its token distribution on held-out text."""
