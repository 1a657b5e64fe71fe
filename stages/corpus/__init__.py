"""The corpus: task text, tokenised and packed into equal blocks."""
