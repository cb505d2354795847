"""Commands beside train.py and val.py, each run as `python -m scripts.NAME`."""
