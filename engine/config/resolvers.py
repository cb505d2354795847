"""The values in an experiment's YAML that follow batch or optimizer, as OmegaConf resolvers.

    ${times_k:1e-5}                                 1e-5 times k, the batch over 128
    ${by_optimizer:{sgd: 5e-4, lars: 5e-3}}         the chosen optimizer's; no key if not listed
    ${by_batch:{128: 0.1, 1024: 0.8}}               the chosen batch's; an error if not listed

The command line wins over each, as over any value of an experiment.
"""

from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf

from engine.errors import UserError, key_error

# The seed study's k counts from this batch in every recipe, whatever `base_batch` a rule uses.
STUDY_BATCH = 128
ABSENT = "(absent)"


def register_resolvers() -> None:
    """Make the resolvers known to OmegaConf in this process; to do so again is harmless."""
    for resolver in (times_k, by_optimizer, by_batch):
        OmegaConf.register_new_resolver(resolver.__name__, resolver, replace=True)


def times_k(value: float, *, _root_: Any) -> float:
    """Return the value times batch / 128; a batch that is no number is refused later, by name."""
    if type(value) not in (int, float):
        raise UserError(f"${{times_k:{value}}}: must be a number")
    batch = _root_.get("batch")
    return value * batch / STUDY_BATCH if type(batch) is int else value


def by_optimizer(values: Mapping[str, Any], *, _root_: Any) -> Any:
    """Return the value listed for the chosen optimizer; `ABSENT`, which drops the key, if none."""
    _check_mapping("by_optimizer", values)
    return values.get(_root_.optimizer.name, ABSENT)


def by_batch(values: Mapping[int, Any], *, _root_: Any, _node_: Any) -> Any:
    """Return the value listed for the chosen batch; raise UserError where there is none."""
    _check_mapping("by_batch", values)
    batch = _root_.get("batch")
    if batch not in values:
        known = ", ".join(map(str, sorted(values)))
        key = _node_._get_full_key(None)
        raise key_error("batch", batch, f"this experiment has {key} for {known} alone; give {key}")
    return values[batch]


def _check_mapping(resolver: str, values: Any) -> None:
    if not isinstance(values, Mapping):
        raise UserError(f"${{{resolver}:{values}}}: must be pairs, ${{{resolver}:{{a: 1, b: 2}}}}")


def without_absent(values: dict[str, Any]) -> dict[str, Any]:
    """Return nested dictionaries without the keys that `by_optimizer` found no value for."""
    return {
        key: without_absent(value) if isinstance(value, dict) else value
        for key, value in values.items()
        if value != ABSENT
    }
