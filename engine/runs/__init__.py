"""One run's directory: written while it trains, read back by reports and sweeps."""
