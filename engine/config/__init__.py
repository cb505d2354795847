"""Configuration: its keys, how they are composed, and the run name that they give."""
