"""Noise that is correlated over the steps (banded matrix factorisation), and the samplings that allow it."""
