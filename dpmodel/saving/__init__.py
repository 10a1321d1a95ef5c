"""What a training keeps on the disk, so that it can be resumed and its weights can be loaded."""
