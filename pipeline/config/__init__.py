"""Typed, torch-free configs of a recipe and its stages.

The stages import these types, and the planner must start in a fraction of a second.
"""
