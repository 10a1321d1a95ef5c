"""The privacy claim that holds for a network's weights: what it rests on, what voids it, and where it is recorded."""
