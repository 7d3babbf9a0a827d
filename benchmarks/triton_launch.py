"""What launching a Triton kernel costs the CPU, with no GPU: microseconds of everything but the driver's own part.

The kernels, compiled for sm_90, and triton's launcher are the real ones; NVIDIA's driver is a library of which every
function succeeds at once, and torch's two look-ups of the current device and stream are constants. Tensors lie on the
CPU. `python benchmarks/triton_launch.py CALLS` prints rows as JSON; it takes a process of its own.
"""

import ctypes
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import timeit
from pathlib import Path

import torch

import resnext_kernels as rk
from resnext_kernels.backends import triton as backend
from resnext_kernels.testing.verify import call

REPEATS = 15
# name(arguments): what it writes.
_DRIVER = """
typedef unsigned long long u64;
#define SUCCEEDS(name) int name() { return 0; }
SUCCEEDS(cuInit) SUCCEEDS(cuCtxSetCurrent) SUCCEEDS(cuCtxGetLimit) SUCCEEDS(cuCtxSetLimit) SUCCEEDS(cuFuncSetAttribute)
SUCCEEDS(cuFuncSetCacheConfig) SUCCEEDS(cuGetErrorString) SUCCEEDS(cuLaunchKernelEx) SUCCEEDS(cuModuleUnload)
SUCCEEDS(cuOccupancyMaxActiveClusters) SUCCEEDS(cuTensorMapEncodeIm2col) SUCCEEDS(cuTensorMapEncodeTiled)
int cuCtxGetCurrent(void **context) { *context = (void *)1; return 0; }
int cuCtxGetDevice(int *device) { *device = 0; return 0; }
int cuDeviceGet(int *device, int index) { *device = index; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { *value = 227 << 10; return 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)1; return 0; }
int cuDriverGetVersion(int *version) { *version = 13000; return 0; }
int cuFuncGetAttribute(int *value, int attribute, void *function) { *value = attribute ? 0 : 1024; return 0; }
int cuModuleGetFunction(void **function, void *module, const char *name) { *function = (void *)1; return 0; }
int cuModuleLoadData(void **module, const void *image) { *module = (void *)1; return 0; }
int cuPointerGetAttribute(u64 *value, int attribute, u64 address) { *value = address; return 0; }
"""


def _stand_in(folder: Path):
    """Makes `folder`'s library the process's driver, and triton's that of one sm_90."""
    source, library = folder / "driver.c", folder / "libcuda.so.1"
    source.write_text(_DRIVER)
    compiler = os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"
    options = ["-shared", "-fPIC", "-w", "-Wl,-soname,libcuda.so.1"]
    subprocess.run([*compiler.split(), *options, str(source), "-o", str(library)], check=True)
    os.environ |= {"TRITON_LIBCUDA_PATH": str(folder), "TRITON_CACHE_DIR": str(folder / "cache")}
    ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.driver import CudaDriver

    driver = CudaDriver()
    driver.get_current_device = lambda: 0
    driver.get_current_stream = lambda device: 0
    driver.get_current_target = lambda: GPUTarget("cuda", 90, 32)
    triton.runtime.driver.set_active(driver)
    backend.DEVICE, backend.missing, backend.architecture = "cpu", lambda: None, lambda index: 90


def _functions() -> dict:
    """From a launch alone to a public function, which makes scale and shift besides."""
    layout = {"dtype": torch.float16}
    x = torch.zeros(8, 128, 14, 14, **layout).to(memory_format=torch.channels_last)
    weight, vector = torch.zeros(128, 4, 3, 3, **layout), torch.zeros(128)
    conv = [1, 1], [1, 1], [1, 1], 32
    problem = backend.ConvProblem.from_tensors(x, weight, *conv)
    prepare, rows, *_ = backend._plan(problem, 90, "relu")
    packed, y = prepare(weight), torch.empty_like(x)
    affine = backend._affine_plan(x.shape, "relu")
    public = {"running_mean": vector, "running_var": vector, "padding": 1, "groups": 32}
    return {
        "Launch, rows_kernel": lambda: rows(x, packed, vector, vector, y, None),
        "Launch, affine_act_kernel": lambda: affine(x, vector, vector, None, y),
        "backend, affine_act": lambda: backend.affine_act(x, vector, vector, None, "relu"),
        "backend, grouped_conv2d_affine_act": lambda: backend.grouped_conv2d_affine_act(
            x, weight, vector, vector, *conv, "relu"
        ),
        "op, affine_act": lambda: call("affine_act", (x, vector, vector, None, "relu"), "triton"),
        "functional.grouped_conv2d_bn_act": lambda: rk.functional.grouped_conv2d_bn_act(x, weight, **public),
    }


@torch.no_grad()
def measure(calls: int) -> list[dict]:
    rows = []
    with tempfile.TemporaryDirectory() as folder, rk.use_backend("triton"):
        _stand_in(Path(folder))
        for name, function in _functions().items():
            function()
            # Means over few calls, the least of many: whatever else the machine does only ever adds.
            us = min(1e6 * timeit.timeit(function, number=calls) / calls for _ in range(REPEATS))
            rows.append({"name": name, "input": "8x128x14x14", "backend": "triton", "us": us})
    return rows


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]))))
