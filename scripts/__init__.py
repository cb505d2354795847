"""Further commands, each run as `python -m scripts.NAME`."""
