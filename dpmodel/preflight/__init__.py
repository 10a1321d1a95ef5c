"""What is checked before a training spends anything."""
