"""Device, precision, threads and seeds of a run, and the facts recorded with a result.

torch's process-wide settings are set again for every run, so that a run of a sweep does not inherit
them from the run before.
"""

import contextlib
import ctypes
import hashlib
import os
import platform
import random
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from engine.errors import key_error
from engine.system.distributed import local_rank, rank, ranks_here, together, world_size
from engine.system.resources import available_cpus, reset_peak_memory, runs_at_once

PROJECT = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True)
class Runtime:
    """The device, precision, threads and ranks that a run uses.

    Attributes:
        device: this rank's device.
        precision: of the forward pass, `fp32` or `bf16`.
        threads: number of CPU threads of each rank.
        rank: this process's rank.
        world_size: number of ranks.

    """

    device: torch.device
    precision: str
    threads: int
    rank: int = 0
    world_size: int = 1

    def autocast(self) -> torch.autocast:
        """Return the context of a forward pass: autocast to bf16, disabled under fp32."""
        enabled = self.precision == "bf16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)

    @property
    def memory_format(self) -> torch.memory_format:
        """Return the memory format of images and weights: channels last."""
        return torch.channels_last

    def place(self, model: nn.Module) -> None:
        """Move a model's weights to the device, in its memory format."""
        model.to(self.device)
        # torch 2.6 takes the memory format, and its annotations leave it out.
        cast(Any, model).to(memory_format=self.memory_format)

    def compile(self, model: nn.Module) -> nn.Module:
        """Return the compiled model, which shares its parameters with `model`.

        torch compiles each input shape once and caches the result on disk for a sweep's other runs.
        Code that an earlier run compiled in this process is dropped: beyond a few shapes torch
        stops compiling, and only logs it.
        """
        torch.compiler.reset()
        return cast(nn.Module, torch.compile(model, dynamic=False))

    def wall_clock(self) -> float:
        """Return the time in seconds after the device has finished all queued work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def start_runtime(
    device: str, precision: str, threads: int | None, deterministic: bool, seed: int
) -> Runtime:
    """Choose device and precision, and set threads, seeds and torch's process-wide settings.

    Raises UserError if the device is not available.

    Args:
        device: `auto`, `cpu`, `cuda` or `mps`.
        precision: `auto`, `fp32` or `bf16`.
        threads: CPU threads; None divides the available CPUs among the ranks on this machine.
        deterministic: True to use only deterministic algorithms.
        seed: the run's seed, from which those of Python and torch are derived.

    """
    place = together(lambda: choose_rank_device(device))
    threads = threads or max(1, available_cpus() // ranks_here())
    torch.set_num_threads(threads)
    keep_freed_memory()
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic
    # By default cuDNN's convolutions round fp32 to TF32's 10-bit mantissa.
    torch.backends.cudnn.allow_tf32 = False
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    random.seed(derive_seed(seed, "python"))
    torch.manual_seed(derive_seed(seed, "torch"))
    reset_peak_memory(place)
    precision = choose_precision(precision, place)
    return Runtime(place, precision, threads, rank(), world_size())


def choose_device(name: str) -> torch.device:
    """Return the named device; raise UserError if this machine lacks it.

    `auto` prefers CUDA, then MPS, then the CPU.
    """
    present = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(device for device, available in present.items() if available)
    if not present[name]:
        here = ", ".join(device for device, available in present.items() if available)
        raise key_error("device", name, f"this machine has none; use one of auto, {here}")
    return torch.device(name)


def choose_rank_device(name: str) -> torch.device:
    """Return this rank's device; raise UserError if there is none for it.

    On CUDA each rank needs a separate GPU. On MPS there can be only one rank.
    """
    place = choose_device(name)
    if world_size() == 1:
        return place
    if place.type == "mps":
        raise key_error("device", name, "must be cuda or cpu for several ranks")
    if place.type == "cuda":
        gpus = torch.cuda.device_count()
        if local_rank() >= gpus:
            allowed = f"needs a GPU for each rank; start at most {gpus} on this machine, or use cpu"
            raise key_error("device", name, allowed)
        place = torch.device("cuda", local_rank())
        torch.cuda.set_device(place)
    return place


def check_sync_bn(sync_bn: bool, runtime: Runtime) -> None:
    """Raise UserError if sync_bn is set on a device other than CUDA: torch lacks its kernels."""
    if sync_bn and runtime.device.type != "cuda":
        allowed = f"needs device=cuda, and this run's is {runtime.device.type}"
        advice = "model.ghost_batch gives the same result for any number of ranks"
        raise key_error("sync_bn", True, f"{allowed}; {advice}")


def choose_precision(name: str, device: torch.device) -> str:
    """Return `fp32` or `bf16`; `auto` gives bf16 if the hardware computes in it natively."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if device.type == "cpu" and platform.machine() in ("x86_64", "AMD64"):
        return "bf16" if torch.cpu._is_avx512_bf16_supported() else "fp32"
    return "fp32"


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for reuse instead of returning large blocks to the system.

    Activations of 1024 images exceed glibc's 32 MiB mmap threshold. By default each is mapped, its
    pages zeroed, and unmapped again at every step, which takes a third of the step (mallopt(3)).
    """
    with contextlib.suppress(OSError, TypeError):
        library = ctypes.CDLL(None)
        if hasattr(library, "gnu_get_libc_version"):
            m_trim_threshold, m_mmap_max = -1, -4
            library.mallopt(m_mmap_max, 0)
            library.mallopt(m_trim_threshold, -1)


def derive_seed(seed: int, *names: str | int) -> int:
    """Return a 63-bit seed for one use of a run's seed, so that no two uses share a random stream.

    Args:
        seed: the run's seed.
        names: what identifies the use, such as `"order"` and an epoch.

    """
    text = "/".join(str(part) for part in (seed, *names))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def device_name(device: torch.device) -> str:
    """Return the model name of the GPU or CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def commit() -> str | None:
    """Return the checkout's commit, or None outside git.

    It ends in `-dirty` if tracked files outside results/ are modified.
    """
    try:
        git = ["git", "-C", str(PROJECT)]
        revision = subprocess.run(
            [*git, "rev-parse", "--short=12", "HEAD"],
            capture_output=True,
            encoding="utf-8",
            check=True,
        ).stdout.strip()
        changes = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no", "--", ".", ":!results"],
            capture_output=True,
            encoding="utf-8",
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{revision}-dirty" if changes else revision


def facts(runtime: Runtime) -> dict[str, Any]:
    """Return the facts recorded with a result: hardware, precision, torch version, commit."""
    return {
        "device": device_name(runtime.device),
        "world_size": runtime.world_size,
        "threads": runtime.threads,
        "runs_at_once": runs_at_once(),
        "precision": runtime.precision,
        "torch": torch.__version__,
        "commit": commit(),
    }
