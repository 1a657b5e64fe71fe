"""Pre-training with the reward-shaped next-token objective."""
