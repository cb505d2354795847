"""The wrapper over every optimizer of torch, timm and pytorch_optimizer.

At a ratio of 1, twenty steps with a weight decay of 0.1 must equal those of the optimizer alone,
with zero gradients and with random ones. The tests assume nothing about the name of the decay
option or about where the decay is added.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import Optimizer

from lars import LARS, LARSWrapper

FLAGS = ("weight_decouple", "decoupled_decay", "decoupled", "decoupled_weight_decay")
DECAY = 0.1


def find_classes() -> dict[str, type[Optimizer]]:
    """Return every optimizer class of the installed libraries, by library and name."""
    found: dict[type[Optimizer], str] = {}
    for library in ("torch.optim", "timm.optim", "pytorch_optimizer"):
        try:
            module = __import__(library, fromlist=["optim"])
        except ImportError:
            continue
        for name in sorted(dir(module)):
            entry = getattr(module, name)
            if isinstance(entry, type) and issubclass(entry, Optimizer) and entry is not Optimizer:
                found.setdefault(entry, f"{library.partition('.')[0]}.{name}")
    return {name: entry for entry, name in found.items()}


CLASSES = find_classes()
# Optimizers that cannot be wrapped, with a part of the error message.
REFUSED = {
    "torch.LBFGS": "evaluates the model",
    "pytorch_optimizer.AliG": "evaluates the model",
    **{
        f"pytorch_optimizer.{name}": "evaluates the model"
        for name in ("SAM", "BSAM", "FriendlySAM", "LookSAM", "WSAM")
    },
    "timm.Adahessian": "differentiates the gradients",
    "pytorch_optimizer.AdaHessian": "differentiates the gradients",
    "pytorch_optimizer.SophiaH": "differentiates the gradients",
    "pytorch_optimizer.LOMO": "steps during the backward pass",
    "pytorch_optimizer.AdaLOMO": "steps during the backward pass",
    "pytorch_optimizer.SafeFP16Optimizer": "does not expose its parameter groups",
}
# Optimizers that are not tested, with the reason.
LEFT_OUT = {
    "torch.SparseAdam": "needs sparse gradients, which have no trust ratio",
    "pytorch_optimizer.GSAM": "needs a model and a scheduler; refused like the other SAMs",
    "pytorch_optimizer.DeMo": "needs einops",
    "pytorch_optimizer.DistributedMuon": "needs a process group",
    "pytorch_optimizer.LoRARite": "needs pairs of matrices",
}
TAKES_ANOTHER = ("Lookahead", "PCGrad", "SafeFP16Optimizer", "OrthoGrad", "TRAC")
MUONS = ("AdaGO", "AdaMuon", "Muon", "MuonClip", "NorMuon")


def make(name: str, params: list[torch.nn.Parameter], **flags: bool) -> Optimizer:
    """Return an optimizer, with the weight decay DECAY if it has that option."""
    optimizer, short = CLASSES[name], name.partition(".")[2]
    taken = inspect.signature(optimizer).parameters
    given = {"lr": 0.01, "weight_decay": DECAY, "num_iterations": 100, "num_data": 10}
    options: dict[str, Any] = {k: v for k, v in given.items() if k in taken} | flags
    base = torch.optim.SGD
    if short in TAKES_ANOTHER or short == "ScheduleFreeWrapper":
        return optimizer(base(params, lr=0.01, momentum=0.9, weight_decay=DECAY))  # type: ignore[arg-type]
    if name.startswith("pytorch_optimizer") and short in MUONS:
        return optimizer([{"params": params, "use_muon": True}], **options)
    if "base_optimizer" in taken:
        model = [torch.nn.Linear(2, 2)] if "model" in taken else []
        return optimizer(*model, params, base_optimizer=base, lr=0.01)  # type: ignore[arg-type]
    if next(iter(taken)) == "model":
        model = torch.nn.Module()
        for index, param in enumerate(params):
            model.register_parameter(f"weight{index}", param)
        return optimizer(model, **options)  # type: ignore[arg-type]
    return optimizer(params, **options)


def walk(
    name: str, wrap: Callable[[Optimizer], Optimizer] | None, zero: bool, **flags: bool
) -> list[torch.Tensor]:
    """Return the weights after twenty steps.

    Args:
        name: key of CLASSES.
        wrap: wraps the optimizer; None for the optimizer alone.
        zero: whether gradients are zero; they are random otherwise.
        flags: options of the optimizer.

    """
    torch.manual_seed(0)
    dtype = torch.float32 if name.endswith(".FAdam") else torch.float64
    params = [torch.nn.Parameter(torch.randn(n, 4, dtype=dtype)) for n in (6, 4)]
    optimizer = make(name, params, **flags)
    if hasattr(optimizer, "train"):
        optimizer.train()
    if wrap is not None:
        optimizer = wrap(optimizer)
    for step in range(20):
        torch.manual_seed(step)
        for param in params:
            param.grad = torch.zeros_like(param) if zero else torch.randn_like(param)
        optimizer.step()
    return [p.detach() for p in params]


def ratio_of_one(optimizer: Optimizer) -> Optimizer:
    """Return a wrapper whose trust ratio is 1 for every tensor."""
    return LARSWrapper(optimizer, trust_coefficient=1e12, trust_clip=True)


def not_adapted(optimizer: Optimizer) -> Optimizer:
    return LARSWrapper(optimizer, adapt=False)


WALKED = [name for name in CLASSES if name not in REFUSED and name not in LEFT_OUT]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("wrap", [not_adapted, ratio_of_one])
@pytest.mark.parametrize("name", WALKED)
def test_a_ratio_of_one_is_the_optimizer_alone(name: str, wrap: Any) -> None:
    if wrap is ratio_of_one and name.endswith(".A2Grad"):
        pytest.skip("has no lr, which trust_clip needs")
    taken = inspect.signature(CLASSES[name]).parameters
    variants: list[dict[str, bool]] = [{}]
    if wrap is ratio_of_one:  # without adaptation the flags make no difference
        variants += [{f: value} for f in FLAGS if f in taken for value in (True, False)]
    for flags in variants:
        for zero in (True, False):
            expected, found = (walk(name, w, zero, **flags) for w in (None, wrap))
            for one, other in zip(found, expected, strict=True):
                torch.testing.assert_close(
                    one, other, rtol=1e-5, atol=2e-6, equal_nan=True, msg=f"{flags} {zero}"
                )


@pytest.mark.parametrize("name", [name for name in REFUSED if name in CLASSES])
def test_unsupported_optimizers_raise_in_one_line(name: str) -> None:
    params = [torch.nn.Parameter(torch.ones(2, 2))]
    with pytest.raises(TypeError, match=rf"must not be \w+, which {REFUSED[name]}") as error:
        LARSWrapper(make(name, params))
    assert "\n" not in str(error.value)


def test_unsupported_inner_optimizers_and_double_ratios_raise() -> None:
    params = [torch.nn.Parameter(torch.ones(2))]
    for base in (LARS(params), LARSWrapper(torch.optim.SGD(params))):
        with pytest.raises(TypeError, match="has trust ratios already"):
            LARSWrapper(base)
    if "timm.Lookahead" in CLASSES:
        base = make("timm.Lookahead", params)
        base._base_optimizer = torch.optim.LBFGS(params)  # type: ignore[attr-defined]
        with pytest.raises(TypeError, match="must not be LBFGS"):
            LARSWrapper(base)


class _Silent(Optimizer):
    """An optimizer with decoupled decay but without an option that says so."""

    def __init__(self, params: Any, weight_decay: float = DECAY) -> None:
        super().__init__(params, {"lr": 0.5, "weight_decay": weight_decay})

    def step(self, closure: Any = None) -> Any:
        """Apply the decay, then subtract the gradient."""
        with torch.no_grad():
            for group in self.param_groups:
                for param in group["params"]:
                    param.mul_(1 - group["lr"] * group["weight_decay"]).sub_(param.grad)


def test_an_unknown_decay_is_not_scaled_and_warns_once() -> None:
    """The warning comes at construction, or at the first step with a decay that is not 0."""
    param = torch.nn.Parameter(torch.ones(2))
    param.grad = torch.zeros(2)
    with pytest.warns(UserWarning, match="does not scale the weight decay of _Silent") as caught:
        optimizer = LARSWrapper(_Silent([param]))
        optimizer.step()
        optimizer.step()
    assert len(caught) == 1
    torch.testing.assert_close(param.detach(), torch.full((2,), 0.95**2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer = LARSWrapper(_Silent([param], weight_decay=0.0))
        optimizer.step()
    optimizer.param_groups[0]["weight_decay"] = DECAY
    with pytest.warns(UserWarning, match="does not scale the weight decay"):
        optimizer.step()


@pytest.mark.parametrize(("decoupled", "decay"), [(True, 0.0), (False, DECAY)])
def test_a_group_option_says_whether_the_decay_is_decoupled(decoupled: bool, decay: float) -> None:
    """If it is not, the decay is added to the gradient that the optimizer gets."""
    param = torch.nn.Parameter(torch.full((2,), 3.0))
    param.grad = torch.ones(2)
    base = _Silent([{"params": [param], "decoupled_weight_decay": decoupled}])
    seen = []
    base.register_step_pre_hook(lambda *_: seen.append(param.grad))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LARSWrapper(base, trust_coefficient=1e12, trust_clip=True).step()
    torch.testing.assert_close(seen[0], torch.full((2,), 1 + 3 * decay))


def test_options_of_the_same_name_are_separate() -> None:
    """timm's Lamb has an option trust_clip. Its value must not replace the wrapper's."""
    lamb = pytest.importorskip("timm.optim").Lamb
    base = lamb([torch.nn.Parameter(torch.ones(2))], trust_clip=False)
    optimizer = LARSWrapper(base, trust_clip=True)
    assert base.param_groups[0]["trust_clip"] is False
    assert optimizer.param_groups[0]["lars_trust_clip"] is True
    copied = copy.deepcopy(optimizer)
    assert copied._options_of(copied.param_groups[0])["trust_clip"] is True


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", [n for n in WALKED if n.partition(".")[2] in (*TAKES_ANOTHER, "ScheduleFreeWrapper")]
)
def test_an_inner_wrapper_keeps_its_checkpoint_format(name: str) -> None:
    """The checkpoint restores state and groups of both wrappers."""
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(4, 4)) for _ in range(2)]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in params]
    first, second = (ratio_of_one(make(name, p)) for p in (params, theirs))
    for each, weights in ((first, params), (second, theirs)):
        if hasattr(each.optimizer, "train"):  # type: ignore[attr-defined]
            each.optimizer.train()  # type: ignore[attr-defined]
        for step in range(7 if each is first else 1):
            torch.manual_seed(step)
            for param in weights:
                param.grad = torch.randn_like(param)
            each.step()
    with torch.no_grad():
        for target, source in zip(theirs, params, strict=True):
            target.copy_(source)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for each, weights in ((first, params), (second, theirs)):
        torch.manual_seed(9)
        for param in weights:
            param.grad = torch.randn_like(param)
        each.step()
    torch.testing.assert_close(params, theirs)
