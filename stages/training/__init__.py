"""What pre-training, mid-training and RL share: DeepSpeed, one process's launch, step checkpoints, resharding."""
