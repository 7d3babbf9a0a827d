"""The CUDA kernels on the CPU: built with g++ and tests/cuda/emulation.h, in the place of the CUDA module."""

import importlib.util
import platform
import shutil
import subprocess
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from resnext_kernels import _native, backends
from resnext_kernels.backends import cuda

ROOT = Path(__file__).parents[1]
# How the emulation runs: when copies arrive, the order of warps and of blocks.
MODES = [
    dict(lazy_copies=lazy, warp_order=order, block_order=order)
    for lazy in (False, True)
    for order in ("forward", "reverse", "random")
]


def why_not() -> str | None:
    if platform.machine() != "x86_64":
        return f"the emulation switches stacks of x86-64, this is {platform.machine()}"
    return None if shutil.which("g++") and shutil.which("cmake") else "needs g++ and cmake"


def build(folder: Path, *options: str):
    """The module _emulated, built in `folder`."""
    import pybind11

    configure = [
        "cmake", "-S", ROOT, "-B", folder, "-G", "Ninja", "-DRESNEXT_KERNELS_EMULATE=ON",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={folder}", *options,
    ]  # fmt: skip
    for command in (configure, ["cmake", "--build", folder]):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stdout + done.stderr)
    return next(folder.glob("_emulated*.so"))


def load(path: Path):
    spec = importlib.util.spec_from_file_location("_emulated", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def as_cuda(module):
    """Within it the backend `cuda` runs the emulated kernels, on CPU tensors."""
    before = _native._cuda, _native.cuda_missing, cuda.DEVICE, cuda.queue, cuda.missing
    _native._cuda, _native.cuda_missing = module, None
    cuda.DEVICE, cuda.queue, cuda.missing = "cpu", lambda x: (0, 0), lambda: None
    backends.forget()
    try:
        yield module
    finally:
        _native._cuda, _native.cuda_missing, cuda.DEVICE, cuda.queue, cuda.missing = before
        backends.forget()


def modes(module, text: str):
    """Two modes of the emulation, that differ in everything; which ones goes by the case."""
    first = sum(map(ord, text)) % len(MODES)
    for mode in (MODES[first], MODES[(first + 4) % len(MODES)]):
        module.configure(**mode)
        yield mode


def variants(problem):
    """The problem in every dtype."""
    return [replace(problem, dtype=dtype, layout="nhwc") for dtype in cuda._DTYPES]
