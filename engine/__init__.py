"""The training harness: configuration, data, training loop, run records, reports and sweeps."""

import os

# Huge pages for large tensors make CPU training a few percent faster. torch reads this variable
# before it allocates its first tensor.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

# By default, a thread that waits for the others of a parallel loop keeps its core busy for about a
# millisecond. On a machine that other processes use too, this takes the core from the thread that
# is waited for. A shorter wait makes such runs about twice as fast, and no run slower. GNU OpenMP
# reads this variable when torch is loaded.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
