"""Between pre-training and RL: train a checkpoint on other text, with the trainer of `stages.pretrain`."""
