"""The command line: every command, one module per group, and what they print."""
