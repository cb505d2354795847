"""Speed, measured beside references in the same interleaved run."""
