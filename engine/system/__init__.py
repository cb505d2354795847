"""Processes, files, signals, memory and devices."""
