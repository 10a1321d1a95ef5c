"""What is tried before a training, so that nothing wrong is released."""
