"""One example at a time: the vectorised pass over a batch, and what guards that no example sees another."""
