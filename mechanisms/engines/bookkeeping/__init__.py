"""The fast engine: watched layers, per-layer formulas, and clipped sums without per-example gradients."""
