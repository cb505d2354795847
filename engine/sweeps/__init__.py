"""Many runs: sweeps, the search for rates, the range test."""
