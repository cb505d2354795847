"""From the disk to a batch of images."""
