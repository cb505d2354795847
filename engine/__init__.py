"""What a run is made of: configuration, plan, data, loop, records and report."""
