"""Trains a checkpoint further before RL: on other text, with the trainer of `stages.next_token`."""
