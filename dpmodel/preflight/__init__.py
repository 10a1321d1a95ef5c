"""What is checked before the first release."""
