"""Sums of clipped vectors and products over all examples, whose sensitivity holds exactly in integers."""
