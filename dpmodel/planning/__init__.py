"""What a training will release and spend, before anything is trained; needs neither data nor torch."""
