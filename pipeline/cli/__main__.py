"""`python -m pipeline.cli` is `priorlab`."""

from pipeline.cli.app import main

main()
