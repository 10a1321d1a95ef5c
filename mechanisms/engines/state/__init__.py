"""State that code can keep: recorded before a pass over private data, and restored after it."""
