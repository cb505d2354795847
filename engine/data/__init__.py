"""From the disk to a batch of images."""

# Pixels of an image in each direction.
SIDE = 32
