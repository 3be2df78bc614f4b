"""A prompt to tokens."""
