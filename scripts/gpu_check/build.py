"""The native modules, built in place for this machine's GPU by CMake and Ninja."""

import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

from . import ROOT

PACKAGE = ROOT / "resnext_kernels"
PROBE = """
from resnext_kernels import _native
assert not _native.missing, _native.missing
assert not _native.cuda_missing, _native.cuda_missing
print(_native._cuda.build_info())
"""


def _run(*command) -> tuple[str, float]:
    """(What it printed, its seconds.)"""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), sysconfig.get_path("scripts")])
    start = time.perf_counter()
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env={**os.environ, "PATH": path})
    print(done.stdout, done.stderr, sep="\n", flush=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
    return done.stdout, time.perf_counter() - start


def _configure(folder: Path, into: Path, cuda: str) -> dict:
    import pybind11

    printed, seconds = _run(
        "cmake", "-S", ROOT, "-B", folder, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release",
        f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={into}", f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", f"-DRESNEXT_KERNELS_CUDA={cuda}",
    )  # fmt: skip
    said = next((line for line in printed.splitlines() if "CUDA kernels" in line), "").removeprefix("-- ")
    return {"seconds": seconds, "cuda": said}


def main(stage) -> str:
    with tempfile.TemporaryDirectory() as scratch:
        # Kept where not dry, so that a second run builds only what changed.
        folder, into = (Path(scratch), Path(scratch)) if stage.dry else (ROOT / "build" / "gpu_check", PACKAGE)

        def build():
            # Dry, ninja says what it would do.
            printed, seconds = _run("cmake", "--build", folder, *(["--", "-n"] if stage.dry else []))
            modules = {module.name: module.stat().st_size for module in sorted(into.glob("*.so"))}
            return {"seconds": seconds, "steps": printed.count("\n["), "modules": modules}

        def load():
            printed, seconds = _run(sys.executable, "-c", "" if stage.dry else PROBE)
            return {"seconds": seconds, "build_info": printed.strip()}

        # Dry, there may be no nvcc.
        cuda = "auto" if stage.dry else "on"
        stage.each({"configure": lambda: _configure(folder, into, cuda), "compile": build, "load": load})
    seconds = sum(row["seconds"] for row in stage.rows)
    return f"{seconds:.0f} s, " + next((row["cuda"] for row in stage.rows if row.get("cuda")), "no CUDA kernels")
