"""Stage one: pre-train with the reward-shaped next-token objective."""
