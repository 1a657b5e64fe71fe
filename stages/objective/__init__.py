"""The objectives of next-token prediction: each in a file, the loss fused with the output layer for all. Needs torch and numpy only."""
