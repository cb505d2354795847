"""Sweeps, the search for learning rates, and the learning-rate range test."""
