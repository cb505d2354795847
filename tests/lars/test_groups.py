"""Parameter groups by module type."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

from lars import LARS, LARSWrapper, parameter_groups


class Everything(nn.Module):
    """Modules whose biases and norms cannot be recognized by shape or name alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.transposed = nn.ConvTranspose1d(3, 4, 3)
        self.batch = nn.BatchNorm2d(4)
        self.instance = nn.InstanceNorm1d(4, affine=True)
        self.layer = nn.LayerNorm((4, 5))
        self.group = nn.GroupNorm(2, 4)
        self.rms = nn.RMSNorm(4)
        self.embedding = nn.Embedding(5, 4)
        self.tied = nn.Linear(4, 5, bias=False)
        self.tied.weight = self.embedding.weight
        self.frozen = nn.Linear(2, 2)
        self.frozen.requires_grad_(False)
        self.attention = nn.MultiheadAttention(4, 2, add_bias_kv=True)
        self.lstm = nn.LSTM(3, 2)
        self.bias_free = nn.Linear(3, 1, bias=False)  # a weight despite its name
        self.slope = nn.PReLU()
        self.token = nn.Parameter(torch.zeros(4))


WEIGHTS = {
    "conv.weight",
    "transposed.weight",
    "embedding.weight",
    "attention.in_proj_weight",
    "attention.out_proj.weight",
    "lstm.weight_ih_l0",
    "lstm.weight_hh_l0",
    "bias_free.weight",
    "slope.weight",
    "token",
}
OTHERS = {
    "conv.bias",
    "transposed.bias",
    "attention.in_proj_bias",
    "attention.bias_k",
    "attention.bias_v",
    "attention.out_proj.bias",
    "lstm.bias_ih_l0",
    "lstm.bias_hh_l0",
    *(f"{n}.{a}" for n in ("batch", "instance", "layer", "group") for a in ("weight", "bias")),
    "rms.weight",
}


def test_by_module_type() -> None:
    """The groups contain every parameter once, in model order, and no frozen parameter."""
    model = Everything()
    weights, others = parameter_groups(model, 0.1)
    names = [name for name, _ in weights["params"]]
    assert set(names) == WEIGHTS and len(names) == len(WEIGHTS)
    assert {name for name, _ in others["params"]} == OTHERS
    own = dict(model.named_parameters())
    assert all(own[name] is p for g in (weights, others) for name, p in g["params"])
    assert names == [name for name in own if name in WEIGHTS]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [(0.1, True), (0.0, False)]),
        ({"decay": "all"}, [(0.1, True), (0.1, False)]),
        ({"adapt": "all"}, [(0.1, True), (0.0, True)]),
        ({"decay": "all", "adapt": "all"}, [(0.1, True), (0.1, True)]),
    ],
)
def test_decay_and_adapt_are_independent(options: dict[str, Any], expected: list[Any]) -> None:
    groups = parameter_groups(Everything(), 0.1, **options)
    assert [(g["weight_decay"], g["adapt"]) for g in groups] == expected


def test_biases_and_norms_may_have_a_separate_rate() -> None:
    """The schedulers read it from the groups. A negative scale or NaN raises."""
    groups = parameter_groups(Everything(), 0.1, bias_lr_scale=0.05)
    assert [g["lr_scale"] for g in groups] == [1.0, 0.05]
    for wrong in (-0.1, float("nan")):
        with pytest.raises(ValueError, match="Invalid bias_lr_scale value"):
            parameter_groups(Everything(), 0.1, bias_lr_scale=wrong)


def test_empty_groups_are_left_out() -> None:
    """A parameter of the model itself has a name without a dot."""
    groups = parameter_groups(nn.Linear(2, 2, bias=False), 0.1)
    assert [[name for name, _ in g["params"]] for g in groups] == [["weight"]]


def test_custom_norms() -> None:
    """A subclass of a norm is one. Other modules can be passed as norms."""

    class GhostNorm(nn.BatchNorm2d):
        pass

    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.ones(1))

    model = nn.Sequential(GhostNorm(2), Scale())
    assert [len(g["params"]) for g in parameter_groups(model, 0.1)] == [1, 2]
    (only,) = parameter_groups(model, 0.1, norm_modules=(nn.BatchNorm2d, Scale))
    assert only["adapt"] is False and len(only["params"]) == 3


class _Shift(nn.Module):
    """A parametrization with a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.amount = nn.Parameter(torch.zeros(1))

    def forward(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the shifted tensor."""
        return tensor + self.amount


def _parametrized(module: nn.Module, name: str) -> nn.Module:
    return parametrize.register_parametrization(module, name, _Shift())


def names_of(model: nn.Module) -> list[set[str]]:
    """Return the names in the group of weights, and those in the other group."""
    names: list[set[str]] = [set(), set()]
    for group in parameter_groups(model, 0.1):
        names[0 if group["adapt"] else 1] |= {name for name, _ in group["params"]}
    return names


HIDDEN: dict[str, tuple[Any, set[str], set[str]]] = {
    "a bias": (
        lambda: _parametrized(nn.Linear(3, 2), "bias"),
        {"weight"},
        {"parametrizations.bias.original", "parametrizations.bias.0.amount"},
    ),
    "a weight": (
        lambda: _parametrized(nn.Linear(3, 2), "weight"),
        {"parametrizations.weight.original", "parametrizations.weight.0.amount"},
        {"bias"},
    ),
    "a norm's weight": (
        lambda: _parametrized(nn.LayerNorm(3), "weight"),
        set(),
        {"bias", "parametrizations.weight.original", "parametrizations.weight.0.amount"},
    ),
    "weight_norm": (
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)),
        {"parametrizations.weight.original0", "parametrizations.weight.original1"},
        {"bias"},
    ),
    "weight_norm of a bias": (
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 2), "bias"),
        {"weight"},
        {"parametrizations.bias.original0", "parametrizations.bias.original1"},
    ),
    "spectral_norm": (
        lambda: nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 2, 3)),
        {"parametrizations.weight.original"},
        {"bias"},
    ),
    "orthogonal": (
        lambda: nn.utils.parametrizations.orthogonal(nn.Linear(3, 3)),
        {"parametrizations.weight.original"},
        {"bias"},
    ),
    "an RNN's bias": (
        lambda: _parametrized(nn.RNN(3, 2, bidirectional=False), "bias_ih_l0"),
        {"weight_ih_l0", "weight_hh_l0"},
        {
            "bias_hh_l0",
            "parametrizations.bias_ih_l0.original",
            "parametrizations.bias_ih_l0.0.amount",
        },
    ),
    "pruned": (
        lambda: prune.l1_unstructured(
            prune.l1_unstructured(nn.Linear(3, 2), "bias", 1), "weight", 1
        ),
        {"weight_orig"},
        {"bias_orig"},
    ),
    "weight_norm, the older": (
        lambda: nn.utils.weight_norm(nn.utils.weight_norm(nn.Linear(3, 2)), "bias"),
        {"weight_g", "weight_v"},
        {"bias_g", "bias_v"},
    ),
    "spectral_norm, the older": (
        lambda: nn.utils.spectral_norm(nn.Linear(3, 2)),
        {"weight_orig"},
        {"bias"},
    ),
    "lists and dicts": (
        lambda: nn.ModuleDict(
            {
                "bias": nn.ParameterList([nn.Parameter(torch.ones(2))]),
                "maps": nn.ParameterDict({"a": nn.Parameter(torch.ones(2, 2))}),
                "parametrizations": nn.Linear(2, 2, bias=False),
            }
        ),
        {"maps.a", "parametrizations.weight"},
        {"bias.0"},
    ),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("depth", [0, 2])
@pytest.mark.parametrize(("make", "weights", "others"), HIDDEN.values(), ids=HIDDEN)
def test_reparametrized_tensors_keep_their_class(
    make: Any, weights: set[str], others: set[str], depth: int
) -> None:
    """Parametrized, pruned and normalized tensors, and collections, at any depth of the model."""
    model = make()
    for _ in range(depth):
        model = nn.Sequential(nn.ReLU(), model)
    found = names_of(model)
    prefix = "1." * depth
    assert found == [{prefix + n for n in names} for names in (weights, others)]
    assert found[0] | found[1] == {n for n, _ in model.named_parameters()}


@pytest.mark.parametrize("norm", [nn.LazyBatchNorm2d, nn.LazyInstanceNorm2d])
def test_lazy_modules_may_be_grouped_before_their_first_batch(norm: Any) -> None:
    """Their parameters stay the same objects and are trained."""
    model = nn.Sequential(nn.LazyConv2d(4, 3), norm(affine=True), nn.Flatten(), nn.LazyLinear(2))
    assert names_of(model) == [
        {"0.weight", "3.weight"},
        {"0.bias", "1.weight", "1.bias", "3.bias"},
    ]
    optimizer = LARS(parameter_groups(model, 0.1), 0.1, momentum=0.9)
    wrapper = LARSWrapper(torch.optim.SGD(parameter_groups(model, 0.1), 0.1))
    optimizer.step()
    model(torch.randn(5, 3, 8, 8)).square().sum().backward()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.step()
    wrapper.step()
    assert all(not torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("make", [LARS, torch.optim.SGD, torch.optim.Adam])
def test_any_optimizer_takes_them(make: Any) -> None:
    """The optimizer keeps the names, which LARS uses for its statistics."""
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    optimizer = make(parameter_groups(model, 0.1), lr=0.1)
    names = [group["param_names"] for group in optimizer.param_groups]
    assert names == [["0.weight"], ["0.bias", "1.weight", "1.bias"]]
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decay": "none"}, "decay value: 'none'"),
        ({"adapt": True}, "adapt value: True"),
        ({"weight_decay": -0.1}, "weight_decay value: -0.1"),
    ],
)
def test_invalid_arguments_raise(options: dict[str, Any], message: str) -> None:
    """The ValueError contains the argument and its value."""
    with pytest.raises(ValueError, match=message):
        parameter_groups(nn.Linear(1, 1), **{"weight_decay": 0.1, **options})


class _ConvNorm(nn.Module):
    """A model for torch.jit and torch.export."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.rnn = nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.LSTM(5, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return one number for each image."""
        return self.norm(self.conv(images)).sum((1, 2, 3)) + self.rnn(images[:, 0, 0:1])[0].sum()


def _reloaded(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(model), file)
    file.seek(0)
    return torch.jit.load(file)


@pytest.mark.filterwarnings("ignore")  # torch.jit warns of its deprecation and of tracing
@pytest.mark.parametrize(
    "change",
    [
        torch.jit.script,
        lambda model: torch.jit.trace(model, torch.ones(2, 3, 5, 5)),
        _reloaded,
        torch.fx.symbolic_trace,
        torch.compile,
    ],
    ids=["scripted", "traced", "loaded", "fx", "compiled"],
)
def test_scripted_traced_and_compiled_modules_keep_their_groups(change: Any) -> None:
    """isinstance fails for scripted modules: https://github.com/pytorch/pytorch/issues/19348."""
    model = _ConvNorm()
    found = names_of(change(model))
    assert [{n.removeprefix("_orig_mod.") for n in names} for names in found] == names_of(model)


@pytest.mark.filterwarnings("ignore")
def test_exported_graphs_are_refused() -> None:
    """Their modules have lost their classes. The graph may be at any depth of a model."""
    model = _ConvNorm()
    program = torch.export.export(model, (torch.ones(2, 3, 5, 5),))
    graphs = program.module(), torch.export.unflatten(program)
    for graph in (*graphs, nn.Sequential(graphs[0])):
        with pytest.raises(TypeError, match="Make the groups from the model that was exported"):
            parameter_groups(graph, 0.1)
    assert dict(graphs[0].named_parameters())["norm.weight"] is model.norm.weight
