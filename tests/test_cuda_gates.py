"""No CUDA kernel spills or takes more registers and instructions than recorded; it takes nvcc but no GPU to see it."""

import json
import os
import sys

import cuda_budgets
import pytest

RECORD = json.loads(cuda_budgets.RECORD.read_text())
ARCHITECTURES = [architecture for each in cuda_budgets.ARCHITECTURES.values() for architecture in each]
AT_MOST = ("registers", "shared", "instructions")


@pytest.fixture(scope="module")
def tools():
    """nvcc and cuobjdump; where tests are to be complete, it is an error that there are none."""
    try:
        nvcc = cuda_budgets.find_nvcc()
        return nvcc, cuda_budgets.find_cuobjdump(nvcc)
    except cuda_budgets.ToolMissing as missing:
        if sys.platform == "linux" and (os.environ.get("CI") or os.environ.get("RESNEXT_KERNELS_REQUIRE_NVCC")):
            pytest.fail(f"{missing}; pip install '.[test]' brings both")
        pytest.skip(f"NO CUDA KERNEL WAS COMPILED: {missing}; pip install '.[test]' brings both")


@pytest.fixture(scope="module")
def usages(tools):
    return cuda_budgets.measure_all(*tools)


def test_table(usages, capsys):
    with capsys.disabled():
        print("\n" + cuda_budgets.table(usages))
    assert all(list(each) == ARCHITECTURES for each in usages.values())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_local_memory(usages, architecture):
    used = {name: (each[architecture].stack, each[architecture].local) for name, each in usages.items()}
    used = {name: both for name, both in used.items() if any(both)}
    assert not used, "bytes of stack, loads and stores of local memory"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_within_budget(tools, usages, architecture):
    """At most the registers, shared memory and instructions of the record, and exactly its memory instructions."""
    version = cuda_budgets.nvcc_version(tools[0])
    if version.split(".")[:2] != RECORD["nvcc"].split(".")[:2]:
        pytest.skip(f"nvcc is {version}; what was recorded is of {RECORD['nvcc']}, another one chooses otherwise")
    over = []
    for name in sorted(usages.keys() | RECORD["kernels"].keys()):
        recorded, usage = RECORD["kernels"].get(name, {}).get(architecture), usages.get(name, {}).get(architecture)
        if recorded is None or usage is None:
            over.append(f"{name}: not in the {'record' if recorded is None else 'sources'}")
            continue
        for field, budget in zip(RECORD["fields"], recorded, strict=True):
            value = getattr(usage, field)
            if value > budget or (field not in AT_MOST and value != budget):
                over.append(f"{name}: {field} {value}, recorded {budget}")
    assert not over, "python tests/cuda_budgets.py records anew what is meant"


SPILLS = """
__global__ void spills(const int* x, int* y) {
  int copy[64];
  for (int i = 0; i < 64; ++i) copy[i] = i * x[i];
  for (int i = 0; i < 64; ++i) y[i] = copy[y[i] % 64];
}
"""
LOOPS = """
__global__ void loops(int n, const unsigned* x, float* y) {
  __shared__ float shared[32];
  float d[4] = {};
#pragma unroll 1
  for (int i = 0; i < n; ++i) {
    const unsigned* a = x + 6 * i;
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};" : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(a[4]), "r"(a[5]));
    __syncthreads();
  }
  shared[threadIdx.x] = d[0] + d[1];
  __syncthreads();
  y[0] = shared[31 - threadIdx.x] + d[2] + d[3];
}
"""


def test_spills_and_loops_are_seen(tools, tmp_path):
    (tmp_path / "seen.cu").write_text(SPILLS + LOOPS)
    for virtual in cuda_budgets.ARCHITECTURES:
        found = cuda_budgets.measure(*tools, tmp_path / "seen.cu", virtual, tmp_path)
        assert len(found) == 2 * len(cuda_budgets.ARCHITECTURES[virtual])
        for (_, name), usage in found.items():
            assert bool(usage.stack and usage.local) == ("spills" in name)
            assert (usage.hmma, usage.bar) == ((0, 0) if "spills" in name else (1, 1))
            assert (usage.shared >= 128) == ("loops" in name) or usage.shared == 1024
