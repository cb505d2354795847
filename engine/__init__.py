"""The training harness: configuration, data, training loop, run records, reports and sweeps."""

import os

# Huge pages for large tensors make CPU training a few percent faster. torch reads this variable
# before it allocates its first tensor.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
