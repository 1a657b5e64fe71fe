"""The corpus: text from tasks, files, hub and library, tokenized and packed into equal blocks."""
