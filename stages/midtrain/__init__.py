"""Between pre-training and RL: on from a checkpoint, on other text, with the trainer of `stages.pretrain`."""
