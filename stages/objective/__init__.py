"""The reward-shaped next-token objective: reference, fused loss and output layer. Needs torch and numpy only."""
