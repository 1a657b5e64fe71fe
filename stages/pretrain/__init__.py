"""Pre-training under a prior."""
