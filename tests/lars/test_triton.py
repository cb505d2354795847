"""The Triton kernels of the CUDA path, in Triton's interpreter on the CPU, and compiled.

Triton reads TRITON_INTERPRET on import, so the tests in the interpreter run in a separate process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lars import LARS, bucket

triton = pytest.importorskip("triton")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.mark.skipif(INTERPRETED, reason="this is the separate process")
def test_in_the_interpreter() -> None:
    """Run all tests below that use the fixture `interpreted`, and the reported training loops."""
    loops = str(Path(__file__).with_name("test_loops.py"))
    options = ["-q", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *options, __file__, loops]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout


def run(options: dict[str, Any], dtype: torch.dtype, telemetry: bool = False) -> list[torch.Tensor]:
    """Return weights, and trust ratios with telemetry, after two steps with a changing rate.

    The tensors are smaller than a chunk, as large, larger, and empty.
    """
    torch.manual_seed(0)
    shapes = [(16,), (5, 7), (0,), (), (2, 3, 2, 2), (6,)]
    tensors = [torch.randn(shape).to(dtype) for shape in shapes]
    tensors[4] = tensors[4].to(memory_format=torch.channels_last)
    tensors[5].zero_()
    params = [torch.nn.Parameter(t) for t in tensors]
    optimizer = LARS(params, trust_coefficient=0.1, weight_decay=0.1, **options)
    optimizer.telemetry = telemetry
    for step in range(2):
        optimizer.param_groups[0]["lr"] = 0.2 * (step + 1)
        for param in params:
            param.grad = torch.randn(param.shape).to(dtype).contiguous()
            if param.dim() == 4:
                param.grad = param.grad.to(memory_format=torch.channels_last)
        optimizer.step()
    rows = optimizer.layer_statistics().values()
    return [*[p.detach() for p in params], *[row["trust_ratio"].float() for row in rows]]


OPTIONS: list[dict[str, Any]] = [
    *[{"variant": v} for v in ("paper", "quadra", "braintools", "larc")],
    {"nesterov": True},
    {"variant": "timm", "nesterov": True, "maximize": True},
    {"variant": "blog", "zero_norm": "one", "nesterov": True},
    {"momentum": 0.0},
    {"momentum": 0.0, "variant": "timm"},
    {"dampening": 0.5, "clip_norm": 1.0},
    {"clip_value": 0.2, "adapt": False},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_kernels_take_the_step(interpreted: None, options: dict[str, Any]) -> None:
    """The step and its statistics equal those of the single-tensor path."""
    found = run({**options, "fused": True}, torch.float32, telemetry=True)
    expected = run({**options, "foreach": False}, torch.float32, telemetry=True)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(interpreted: None, dtype: torch.dtype) -> None:
    """Half types are rounded once in a step. fp64 uses foreach."""
    found, expected = (run(o, dtype) for o in ({"fused": True}, {"foreach": False}))
    tolerance = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_mixed_layouts_use_foreach(interpreted: None) -> None:
    """The kernels ignore strides, so they cannot read a gradient with another layout."""
    paths = []
    for gradient in (torch.ones(4, 6), torch.ones(6, 4).t()):
        param = torch.nn.Parameter(torch.ones(4, 6))
        param.grad = gradient
        optimizer = LARS([param], fused=True)
        paths += [b.path for b in optimizer._init_group(optimizer.param_groups[0], 0)]
    assert paths == ["triton", "foreach"]


def test_mixed_dtypes_use_foreach(interpreted: None) -> None:
    """The kernels read all lists as one dtype. The step equals that of the single-tensor path."""
    ends = []
    for options in ({"fused": True}, {"foreach": False}):
        torch.manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(20).bfloat16()) for _ in range(3)]
        optimizer = LARS(params, 0.3, weight_decay=0.1, trust_coefficient=0.1, **options)
        params[0].grad_dtype = torch.float32
        optimizer.state[params[1]]["momentum_buffer"] = torch.zeros(20)
        for _ in range(2):
            for param, dtype in zip(params, ("float32", "bfloat16", "bfloat16"), strict=True):
                param.grad = torch.randn(20).to(getattr(torch, dtype))
            optimizer.step()
        buckets = optimizer._init_group(optimizer.param_groups[0], 0)
        ends.append(([p.detach() for p in params], [b.path for b in buckets]))
    assert ends[0][1] == ["foreach", "foreach", "triton"]
    torch.testing.assert_close(ends[0][0], ends[1][0], rtol=0.02, atol=0.02)


def test_tables_follow_the_gradients(interpreted: None) -> None:
    """A gradient may be at a new address. An additional parameter needs a new chunking."""
    params = [torch.nn.Parameter(torch.ones(20)) for _ in range(2)]
    optimizer = LARS(params, lr=1.0, momentum=0.0, trust_coefficient=0.1, fused=True)
    kept = []
    for value in (1.0, 2.0):
        kept.append(torch.full((20,), value))
        params[0].grad = kept[-1]
        before = params[0].detach().clone()
        optimizer.step()
        torch.testing.assert_close(before - params[0].detach(), 0.1 * before)
    params[1].grad = -torch.ones(20)
    optimizer.step()
    torch.testing.assert_close(params[1].detach(), torch.full((20,), 1.1))


def test_a_missing_compiler_falls_back_to_foreach(
    interpreted: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is one warning, and the step is taken."""
    from lars import fused_cuda

    def fail(*_: Any) -> None:
        raise RuntimeError("no C compiler")

    monkeypatch.setattr(fused_cuda.Chunking, "norms", fail)
    param = torch.nn.Parameter(torch.ones(2))
    param.grad = torch.ones(2)
    with pytest.warns(UserWarning, match="no C compiler"):
        LARS([param], lr=1.0, trust_coefficient=0.5, fused=True).step()
    assert param.tolist() == [0.5, 0.5]
    assert bucket.path_on(param, "fused") == "fused"


@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", ["sum_squares", "finish_norms", "update"])
def test_the_kernels_compile_for_cuda(name: str, dtype: str) -> None:
    """The target is compute capability 9.0. This needs Triton's assembler but no GPU."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from lars import kernels

    kernel = getattr(kernels, name)
    types = {"fp32": kernels.tl.float32, "bf16": kernels.tl.bfloat16, "fp16": kernels.tl.float16}
    constants: dict[str, Any] = {"DTYPE": types[dtype], "BLOCK": 4096}
    flags = ("DECAYS", "HAS_RATE", "HAS_MOMENTUM", "NESTEROV")
    constants |= dict.fromkeys(flags, True)
    constants = {k: v for k, v in constants.items() if k in kernel.arg_names}
    addresses = ("table", "weights", "grads", "buffers", "tensor_of", "start_of", "size_of")
    signature = {}
    for argument in kernel.arg_names:
        if argument in constants:
            signature[argument] = "constexpr"
        elif argument in (*addresses, "first_chunk"):
            signature[argument] = "*i64"
        else:
            signature[argument] = "fp32" if argument in ("momentum", "undampened") else "*fp32"
    source = ASTSource(kernel, signature, constexprs=constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32))
    assert len(compiled.asm["cubin"]) > 0
