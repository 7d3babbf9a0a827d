"""What the Triton kernels compile to, with no GPU: no spills, shared memory that there is, registers as recorded."""

import json
import os
import re
import subprocess
import sys

import pytest
import triton_aot

pytest.importorskip("triton")
RECORD = json.loads(triton_aot.RECORD.read_text())


@pytest.fixture(scope="module")
def usages(tmp_path_factory, request):
    """In a process of its own, and compiled anew."""
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    env["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    everything = ["--all"] if request.config.getoption("--triton-all") else []
    done = subprocess.run([sys.executable, triton_aot.__file__, *everything], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return {name: triton_aot.Usage(**usage) for name, usage in json.loads(done.stdout.splitlines()[-1]).items()}


def _architecture(name):
    return int(re.search(r"sm_(\d+)", name)[1])


def test_table(usages, capsys):
    with capsys.disabled():
        print(f"\n{len(usages)} kernels: registers, shared memory, matrix instruction, instructions")
        for name, usage in usages.items():
            print(f"  {name:44} {usage.registers:4} {usage.shared:7} {usage.mma:12} {usage.instructions:5}")
    assert len(usages) >= 30


def test_no_local_memory(usages):
    assert not {name: usage.local for name, usage in usages.items() if usage.local}


def test_shared_memory_that_there_is(usages):
    for name, usage in usages.items():
        assert usage.shared <= triton_aot.SHARED[_architecture(name)] * 1024, name


def test_matrix_instructions(usages):
    """Products of float32 are exact: no tensor cores; batched products are mma.sync on every architecture."""
    for name, usage in usages.items():
        convolution = not name.startswith("images") and "prepack" not in name and "merge" not in name
        kinds = {"none"} if "fp32" in name or not convolution else {"mma.sync"}
        if re.match(r"wide\b", name) and kinds == {"mma.sync"}:
            kinds = {{90: "wgmma", 100: "tcgen05.mma"}.get(_architecture(name), "mma.sync")}
        assert usage.mma in kinds, name


def test_within_budget(usages):
    """No more registers, shared memory and instructions than recorded with this version of triton."""
    import triton

    if triton.__version__.split(".")[:2] != RECORD["triton"].split(".")[:2]:
        pytest.skip(f"triton is {triton.__version__}; what was recorded is of {RECORD['triton']}")
    over = []
    assert len(usages.keys() & RECORD["kernels"].keys()) >= 30
    for name, usage in usages.items():
        recorded = RECORD["kernels"].get(name)
        if recorded is None:
            continue
        for field, budget in zip(RECORD["fields"], recorded, strict=True):
            value = getattr(usage, field)
            if value != budget if field == "mma" else value > budget:
                over.append(f"{name}: {field} {value}, recorded {budget}")
    assert not over, "python tests/triton_aot.py --record records anew what is meant"
