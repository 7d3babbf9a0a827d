"""The native CPU kernels: memory, threads, forks, instruction sets."""

import json
import os
import subprocess
import sys

import pytest
import torch

from resnext_kernels import _native
from resnext_kernels.problem import ConvProblem
from resnext_kernels.testing import cases, exact
from resnext_kernels.testing.verify import call

pytestmark = pytest.mark.native
OP = "grouped_conv2d_affine_act"
# channels a group 1 to 32 and odd ones; strides, dilations, odd sizes, more outputs than inputs and fewer
PROBLEMS = [
    f"n2_c{width * groups}_h{h}_w{w}_o{out * groups}_g{groups}_s{stride}_d{dilation}_p{dilation}_{layout}"
    for layout in cases.FORMATS
    for width, out, groups, h, w, stride, dilation in [
        (1, 1, 16, 9, 17, 1, 1), (1, 1, 24, 8, 8, 2, 1), (2, 2, 8, 7, 15, 1, 1), (2, 4, 12, 6, 5, 1, 2),
        (3, 3, 5, 9, 7, 1, 1), (4, 4, 32, 14, 14, 1, 1), (4, 4, 6, 13, 29, 2, 1), (4, 8, 4, 5, 33, 1, 1),
        (5, 7, 3, 8, 6, 2, 2), (8, 8, 4, 28, 28, 1, 1), (8, 8, 2, 15, 31, 2, 1), (8, 4, 4, 7, 7, 1, 1),
        (10, 10, 2, 9, 9, 1, 4), (14, 14, 2, 7, 16, 1, 1), (16, 16, 3, 14, 14, 1, 1), (16, 16, 2, 9, 15, 2, 1),
        (24, 24, 2, 7, 9, 1, 1), (32, 32, 2, 7, 7, 1, 1), (32, 16, 2, 8, 14, 2, 1), (40, 20, 1, 6, 6, 1, 2),
        (64, 64, 1, 5, 15, 1, 1), (4, 4, 2, 1, 1, 1, 1), (16, 16, 1, 1, 40, 1, 1), (8, 8, 3, 40, 1, 1, 1),
    ]
]  # fmt: skip


DTYPES = ["float32", "bfloat16", "float16"]


def mismatches() -> list[str]:
    problems = (ConvProblem.parse(f"{text}_{dtype}") for text in PROBLEMS for dtype in DTYPES)
    results = (exact.mismatch(OP, problem, "cpu", activation="relu") for problem in problems)
    return [result for result in results if result]


def check_instruction_set(isa, module, *args):
    """`module`.mismatches(*args) finds none on `isa`; in a process of its own, as the choice is made at load."""
    if isa not in _native._C.build_info()["isas"]:
        pytest.skip(f"{isa} is not in this build: {_native._C.build_info()['isas']}")
    code = (
        f"import json, {module}; from resnext_kernels import _native\n"
        f"print(json.dumps([_native.cpu_isa or _native.missing, {module}.mismatches(*{args!r})]))"
    )
    path = os.pathsep.join([os.path.dirname(__file__), *filter(None, sys.path)])
    environment = {**os.environ, "RESNEXT_KERNELS_CPU_ISA": isa, "PYTHONPATH": path}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    if "as this CPU allows" in result.stdout + result.stderr:
        pytest.skip(f"this CPU does not run {isa}")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == [isa, []]


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512", "avx512_bf16"])
def test_every_instruction_set_is_exact(isa):
    check_instruction_set(isa, "test_cpu")


def test_peak_is_a_rate_that_a_core_can_have():
    assert 1 < _native._C.fma_gflops() < 1000


def test_unknown_instruction_set_is_a_reason():
    code = "import resnext_kernels as rk; print(rk.available_backends()['cpu'])"
    environment = {**os.environ, "RESNEXT_KERNELS_CPU_ISA": "avx1024"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert "RESNEXT_KERNELS_CPU_ISA: expected" in result.stdout and "got avx1024" in result.stdout, result.stderr


def check_bits(op, args):
    """The results are the same for any number of threads."""
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(call(op, args, "cpu"))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for result in results[1:] for a, b in zip(result, results[0], strict=True))


@pytest.mark.parametrize("text", [*PROBLEMS[::3], *(f"{text}_bfloat16" for text in PROBLEMS[1::3])])
def test_same_bits_for_any_number_of_threads(text):
    check_bits(OP, cases.make(OP, ConvProblem.parse(text), integers=False))


def within_nan(values, offset, memory_format):
    """The same values as a view, misaligned by `offset` elements, into storage that is NaN all around."""
    n, c, h, w = values.shape
    big = torch.full((n + 2, c + 4, h + 2, w + 3), float("nan")).contiguous(memory_format=memory_format)
    flat = torch.full((big.numel() + offset,), float("nan"), dtype=values.dtype)
    big = flat[offset:].as_strided(big.shape, big.stride(), flat.storage_offset() + offset)
    view = big[1:-1, 2:-2, 1:-1, 1:-2]
    return view.copy_(values)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("text", PROBLEMS)
def test_neighbours_in_memory_do_not_matter(text, offset, dtype):
    problem = ConvProblem.parse(f"{text}_{dtype}")
    x, weight, scale, shift, *rest = cases.make(OP, problem, integers=True)
    view = within_nan(x, offset, cases.FORMATS[problem.layout])
    weights = within_nan(weight, offset, torch.contiguous_format)
    vectors = [torch.stack([v, v * float("nan")], 1)[:, 0] for v in (scale, shift)]
    (y,) = call(OP, (view, weights, *vectors, *rest), "cpu")
    (expected,) = call(OP, (x, weight, scale, shift, *rest), "reference")
    assert torch.equal(y, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("strides", ["transposed", "expanded", "channels reversed in memory order"])
def test_strides_of_any_kind(strides, dtype):
    problem = ConvProblem.parse(f"n2_c8_h6_w6_g2_{dtype}")
    x, *rest = cases.make(OP, problem, integers=True)
    if strides == "transposed":
        x = x.transpose(2, 3)
    elif strides == "expanded":
        x = x[:1].expand(2, -1, -1, -1)
    else:
        x = x.permute(1, 3, 0, 2).contiguous().permute(2, 0, 3, 1)
    (y,), (expected,) = call(OP, (x, *rest), "cpu"), call(OP, (x.contiguous(), *rest), "reference")
    assert torch.equal(y, expected)


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_rounding_to_storage(dtype):
    """Ties to even, overflow, subnormals, infinities and NaN, as PyTorch rounds them."""
    x = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-11, 1 + 3 * 2**-11, 65519, 65520, 3e38, -1e-7, 6e-8, 2.9e-8,
                      1e-40, -0.0, 6.1e-5, float("inf"), float("-inf"), float("nan")])  # fmt: skip
    x = torch.cat([x, torch.randn(4096) * 2.0 ** torch.randint(-30, 17, (4096,))])
    half = getattr(torch, dtype)
    ones = torch.ones(1, 1, 1, 1, dtype=half)
    for image in (x.to(half).view(1, 1, 1, -1), x.view(1, 1, 1, -1)[..., :1].to(half)):
        scale = torch.tensor([1.0078125])
        args = (image, ones, scale, torch.zeros(1), [1, 1], [0, 0], [1, 1], 1, "identity")
        (y,) = call(OP, args, "cpu")
        assert torch.equal(y.nan_to_num(), (image.float() * scale).to(half).nan_to_num())
        assert torch.equal(y.isnan(), image.isnan())


def test_concurrent_calls():
    """Python threads share the kernels; the GIL is released meanwhile."""
    from concurrent.futures import ThreadPoolExecutor

    args = cases.make(OP, ConvProblem.parse("n4_c64_h28_g16_nhwc"), integers=True)
    (expected,) = call(OP, args, "cpu")
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(y, expected) for (y,) in pool.map(lambda _: call(OP, args, "cpu"), range(32)))


def test_forked_child_does_not_hang():
    code = """
import os, torch, resnext_kernels as rk
x, weight = torch.ones(8, 64, 28, 28), torch.ones(64, 4, 3, 3)
def run():
    with rk.use_backend("cpu"):
        y = rk.functional.grouped_conv2d(x, weight, padding=1, groups=16)
    return y.numpy().tobytes()  # torch's own parallel ops do hang in the child
torch.set_num_threads(2)
here, pid = run(), os.fork()
if pid == 0:
    os._exit(0 if run() == here else 1)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.stdout.strip() == "0", result.stderr


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="needs /proc/self/maps")
def test_no_openmp_runtime_of_its_own():
    """One more runtime would mean a second pool of threads."""
    code = """
import re, torch
def runtimes():
    return set(re.findall(r"\\S*lib(?:g|i|)omp\\S*", open("/proc/self/maps").read()))
torch.ones(2**20).sum()
before = runtimes()
import resnext_kernels as rk
with rk.use_backend("cpu"):
    rk.functional.grouped_conv2d(torch.ones(8, 64, 28, 28), torch.ones(64, 4, 3, 3), groups=16)
print(len(before), runtimes() == before)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.split() == ["1", "True"], result.stdout + result.stderr
