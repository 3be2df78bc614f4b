"""Is it Meta's model? Rounding, or a bug, and where."""
