"""Next-token training, which pre-training, mid-training and fine-tuning share: HF Trainer, DeepSpeed, and the loss in the head."""
