"""Kernels of this folder as libraries: by nvcc for this GPU, or by g++ with the emulation of csrc/cuda/platform.h.

Their functions queue work on a stream and return null, or else what went wrong.
"""

import ctypes
import os
import platform
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import ROOT

HERE = Path(__file__).parent
EMULATION = ["-x", "c++", "-O1", "-Wno-unknown-pragmas", "-ffp-contract=off", "-DRESNEXT_KERNELS_EMULATION",
             f"-I{ROOT / 'tests' / 'cuda'}"]  # fmt: skip


def find_nvcc() -> str | None:
    """As CMakeLists.txt finds it."""
    packages = Path(sysconfig.get_path("purelib"), "nvidia", "cu13", "bin")
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/cuda/bin", str(packages)])
    return shutil.which(os.environ.get("CUDACXX", "nvcc"), path=path)


def why_no_emulation() -> str | None:
    if platform.machine() != "x86_64":
        return f"the emulation switches stacks of x86-64, this is {platform.machine()}"
    return None if shutil.which("g++") else "the emulation needs g++"


def _compile(compiler: str, source: str, target: Path, *options) -> Path:
    includes = [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'csrc' / 'cuda'}"]
    command = [compiler, "-std=c++17", *includes, *options, str(HERE / source), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return target


def for_gpu(source: str, folder: str, architecture: str) -> Path:
    nvcc = find_nvcc()
    if nvcc is None:
        raise RuntimeError("no nvcc in CUDACXX, PATH, /usr/local/cuda/bin or this Python's packages")
    runtime = Path(nvcc).resolve().parents[1] / "lib"  # nvcc links with lib64; its packages have lib
    options = [f"-arch={architecture}", "-fmad=false", "-shared", "-Xcompiler", "-fPIC", f"-L{runtime}"]
    return _compile(nvcc, source, Path(folder, f"{Path(source).stem}.gpu.so"), *options)


def for_cpu(source: str, folder: str) -> Path:
    return _compile("g++", source, Path(folder, f"{Path(source).stem}.cpu.so"), *EMULATION, "-shared", "-fPIC")


def for_both(source: str, folder: str, architecture: str, dry: bool) -> tuple[Path | None, Path | None]:
    """(For the GPU, for the CPU), built side by side; None where it cannot be and, for the GPU, need not."""
    with ThreadPoolExecutor() as pool:
        gpu = pool.submit(for_gpu, source, folder, architecture) if find_nvcc() or not dry else None
        cpu = None if why_no_emulation() else pool.submit(for_cpu, source, folder)
        return gpu and gpu.result(), cpu and cpu.result()


class Library:
    """A built library; `call` raises what its functions report."""

    def __init__(self, path: Path):
        self._library = ctypes.CDLL(str(path))

    def number(self, name: str, *arguments: int) -> int:
        return getattr(self._library, name)(*arguments)

    def text(self, name: str, *arguments) -> str | None:
        function = getattr(self._library, name)
        function.restype = ctypes.c_char_p
        result = function(*(ctypes.c_int64(each) for each in arguments))
        return None if result is None else result.decode()

    def call(self, name: str, *arguments: int) -> None:
        error = self.text(name, *arguments)
        if error is not None:
            raise RuntimeError(f"{name}: {error}")
