"""The emulation that CUDA kernels are tested with, itself: tests/cuda/emulation_selftest.cpp."""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMPILE = ["g++", "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-ffp-contract=off",
           "-ftrivial-auto-var-init=pattern", "-DRESNEXT_KERNELS_EMULATION",
           *(f"-I{ROOT / folder}" for folder in ("csrc", "csrc/cuda", "tests/cuda"))]  # fmt: skip


@pytest.mark.parametrize("sanitizers", [None, "address,undefined"], ids=str)
def test_selftest(request, tmp_path, capsys, sanitizers):
    if platform.machine() != "x86_64" or not shutil.which("g++"):
        pytest.skip(f"the emulation needs g++ and x86-64; this is {platform.machine()}, g++: {shutil.which('g++')}")
    if sanitizers and not request.config.getoption("--sanitize"):
        pytest.skip("compiles the self-test once more, with sanitizers: --sanitize runs it")
    options = [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all", "-g"] if sanitizers else []
    program = tmp_path / "selftest"
    source = ROOT / "tests" / "cuda" / "emulation_selftest.cpp"
    for command in ([*COMPILE, *options, source, "-o", program], [program]):
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr
    assert ", 0 wrong" in result.stdout
    with capsys.disabled():
        print(f"\nemulation of CUDA, sanitizers {sanitizers}: {result.stdout.strip()}")
