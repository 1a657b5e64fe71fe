"""Runs the stages of a graph to completion: one scheduler, and the backends that start and watch processes."""
