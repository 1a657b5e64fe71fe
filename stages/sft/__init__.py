"""Before RL: train a checkpoint on worked solutions, where the loss counts responses alone."""
