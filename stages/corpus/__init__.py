"""The corpus: text of tasks, files, hub and library, tokenised and packed into equal blocks."""
