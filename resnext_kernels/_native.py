"""The native module, or the reason why it is absent; torch's thread pool as a function pointer."""

import ctypes
import os
from pathlib import Path

import torch

try:
    from . import _C
except ImportError as error:
    _C = None
    missing = f"native module not available: {error}"
else:
    missing = None


def _torch_parallel_for() -> int:
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
    return ctypes.cast(library.torch_parallel_for, ctypes.c_void_p).value


parallel_for = 0 if _C is None else _torch_parallel_for()


def _serial_in_child():
    # OpenMP hangs in a forked child once the parent has run a parallel region.
    global parallel_for
    parallel_for = 0


os.register_at_fork(after_in_child=_serial_in_child)
