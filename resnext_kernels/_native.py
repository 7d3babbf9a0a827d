"""The native modules, or the reasons why they are absent; torch's thread pool as a function pointer."""

import ctypes
import importlib
import os
import pkgutil
import platform
import sys
from pathlib import Path

import torch
from torch.autograd import forward_ad

_PLAIN = (torch.Tensor, torch.nn.Parameter)
_package = sys.modules[__package__]
# An installed package has its metadata beside it and uses its own native modules. A checkout holds none unless they
# were built in place, and shadows the installed package when Python starts in it: there the installed ones serve.
if not any(Path(__file__).parents[1].glob(f"{__package__}-*.dist-info")):
    _package.__path__ = pkgutil.extend_path(_package.__path__, __package__)


def _why_absent() -> str:
    if platform.system() == "Linux" and platform.machine() in ("x86_64", "aarch64"):
        return (
            "native kernels are not built: this copy was installed where no C++ compiler was found, or not installed; "
            "they need one with C++17 (Debian, Ubuntu: apt install g++) and then, in the checkout, "
            "pip install --force-reinstall --no-deps ."
        )
    return f"native kernels are built on Linux x86-64 and aarch64, this is {platform.system()} {platform.machine()}"


def _load(name: str, kernels: str, absent: str):
    """The module and None, or None and why."""
    try:
        return importlib.import_module(f"{__package__}.{name}"), None
    except ModuleNotFoundError:
        return None, absent
    except ImportError as error:
        return None, f"{kernels} do not load: {error}; install the package again on this machine"


_C, missing = _load("_C", "native kernels", _why_absent())
# It loads without a driver, and asks nothing of one until its first call.
_cuda, cuda_missing = _load(
    "_cuda",
    "CUDA kernels",
    missing
    or "CUDA kernels are not built: no nvcc when this copy was installed, or RESNEXT_KERNELS_CUDA=off; they need "
    "CUDA 12 or newer, its nvcc in PATH, CUDACXX or /usr/local/cuda/bin, and then, in the checkout, "
    "pip install --force-reinstall --no-deps .",
)


def _torch_parallel_for() -> int:
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
    return ctypes.cast(library.torch_parallel_for, ctypes.c_void_p).value


parallel_for, cpu_isa = 0, None
if _C is not None:
    try:
        parallel_for, cpu_isa = _torch_parallel_for(), _C.cpu_isa()
    except RuntimeError as error:
        _C, missing = None, str(error)
    except (OSError, AttributeError) as error:
        _C, missing = None, f"native kernels do not find torch's threads: {error}; install torch >= 2.11"


def addresses(*tensors) -> list[int] | None:
    """Those of contiguous float32 CPU tensors, 0 for None; None where anything but eager PyTorch is to see the work:
    autograd, a compiler, a tracer, a transform, a mode, a subclass."""
    if (
        _C is None
        or torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state() is not None
        or forward_ad._current_level >= 0
    ):
        return None
    grad, result = torch.is_grad_enabled(), []
    for t in tensors:
        if t is None:
            result.append(0)
        elif type(t) not in _PLAIN or t.dtype is not torch.float32 or not t.is_cpu or not t.is_contiguous():
            return None
        elif grad and t.requires_grad:
            return None
        else:
            result.append(t.data_ptr())
    return result


def _serial_in_child():
    # OpenMP hangs in a forked child once the parent has run a parallel region.
    global parallel_for
    parallel_for = 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_serial_in_child)
