"""The native library under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer: tests/native/sweep.cpp;
the emulated CUDA kernels under the first two."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import emulated
import pytest

from resnext_kernels import _native

pytestmark = pytest.mark.native
ROOT = Path(__file__).parents[1]
X86 = platform.machine() == "x86_64"
# A race shows on any instruction set.
COMPILED = {"address": ["avx2", "avx512"] if X86 else ["baseline"], "thread": ["avx2"] if X86 else ["baseline"]}


@pytest.fixture(scope="module", params=COMPILED)
def sanitizer(request):
    if not request.config.getoption("--sanitize"):
        pytest.skip("builds the native library twice more, minutes: --sanitize runs it")
    return request.param


def run(command, **environment):
    result = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    return result.returncode, result.stdout + result.stderr


def test_sweep(sanitizer, tmp_path, capsys):
    cmake = shutil.which("cmake")
    options = {"RESNEXT_KERNELS_SANITIZE": sanitizer, "RESNEXT_KERNELS_ISAS": ";".join(COMPILED[sanitizer])}
    configure = [cmake, "-S", ROOT, "-B", tmp_path, "-G", "Ninja", *(f"-D{key}={options[key]}" for key in options)]
    for command in (configure, [cmake, "--build", tmp_path]):
        code, output = run(command)
        assert code == 0, output
    ran = []
    for isa in COMPILED[sanitizer] + ["avx512_bf16"] * ("avx512" in COMPILED[sanitizer]):
        code, output = run([tmp_path / "sweep"], RESNEXT_KERNELS_CPU_ISA=isa)
        if "as this CPU allows" in output:
            continue
        assert code == 0 and f"{isa}: " in output and ", 0 wrong" in output, output
        ran.append(output.strip())
    with capsys.disabled():
        print(f"\n{sanitizer} sanitizer: {'; '.join(ran) or 'this CPU runs none of its instruction sets'}")
    assert ran or _native.cpu_isa == "baseline"


def test_emulated_cuda_kernels(sanitizer, tmp_path):
    if sanitizer == "thread":
        pytest.skip("the emulation runs on one thread")
    if reason := emulated.why_not():
        pytest.skip(reason)
    module = emulated.build(tmp_path, "-DRESNEXT_KERNELS_SANITIZE=address")
    libraries = [run(["g++", f"-print-file-name=lib{name}.so"])[1].strip() for name in ("asan", "ubsan")]
    environment = dict(LD_PRELOAD=":".join(libraries), ASAN_OPTIONS="detect_leaks=0", RESNEXT_KERNELS_EMULATED=module)
    tests = [*sorted((ROOT / "tests").glob("test_cuda_*.py")), "-k", "nothing_beyond"]
    code, output = run([sys.executable, "-m", "pytest", "-q", *tests], **{k: str(v) for k, v in environment.items()})
    assert code == 0 and " passed" in output, output
