"""Fine-tunes a checkpoint before RL: on worked solutions, with a loss of responses only."""
