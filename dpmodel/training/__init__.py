"""One private training: epochs of steps, what happens in them, and what watches over them."""
