"""What was asked for: configuration keys, their composition, and the name they give a run."""
