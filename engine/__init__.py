"""What a run is made of: configuration, plan, data, loop, records and report."""

import os

# Large tensors on huge pages, a few percent faster on the CPU; torch reads it before its first one.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
