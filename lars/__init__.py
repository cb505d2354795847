"""LARS and LAMB for PyTorch: LARS with its published variants by name and a fast path per device.

Example::

    from lars import LARS, parameter_groups
    optimizer = LARS(parameter_groups(model, weight_decay=5e-4), lr=0.1)

"""

from .groups import parameter_groups
from .lamb import LAMB
from .lars import LARS
from .presets import PRESETS
from .wrapper import LARSWrapper

__all__ = ["LAMB", "LARS", "PRESETS", "LARSWrapper", "parameter_groups"]
