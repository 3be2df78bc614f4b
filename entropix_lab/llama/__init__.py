"""What Llama computes. Imports jax and numpy, nothing of ours."""
