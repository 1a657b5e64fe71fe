"""Brings the stages of a graph to their end: one scheduler, and the backends that start and watch processes."""
