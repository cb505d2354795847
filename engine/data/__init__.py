"""The data pipeline: from files on disk to batches of images."""

# Height and width of every image, in pixels.
SIDE = 32
