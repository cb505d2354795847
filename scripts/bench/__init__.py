"""Speed benchmarks. Candidates and references are timed in the same interleaved run."""
