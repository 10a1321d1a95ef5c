"""One example at a time: the vectorised pass over a batch, and guards that keep the examples apart."""
