"""Reports of a group of runs: tables, plots, pages and progress."""
