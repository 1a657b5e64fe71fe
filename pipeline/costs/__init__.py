"""What a stage will cost, by formula: arithmetic, memory, messages, hours and money."""
