"""GRPO-style RL with vLLM rollouts and verified rewards."""
