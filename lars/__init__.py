"""LARS for PyTorch, usable on its own: `from lars import LARS, parameter_groups`."""

from lars.groups import parameter_groups
from lars.lars import LARS

__all__ = ["LARS", "parameter_groups"]
