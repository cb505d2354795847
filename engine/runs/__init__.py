"""The directory of one run: written during training, read by reports and sweeps."""
