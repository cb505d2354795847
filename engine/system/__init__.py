"""Process, disk and device: what a run needs of the machine."""
