"""From finished evaluations to the comparison: gains, their intervals, and what they show."""
