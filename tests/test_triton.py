"""The Triton backend without a GPU: what it says of itself, its kernels in the interpreter, its choice of tiles."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import resnext_kernels as rk
from resnext_kernels.backends import triton
from resnext_kernels.problem import ConvProblem
from resnext_kernels.testing import problems
from resnext_kernels.triton_kernels import configs, configs_wgrad
from resnext_kernels.triton_kernels.launch import Launch

HERE = Path(__file__).parent
ARCHITECTURES = (80, 86, 87, 89, 90, 100, 103, 120, 121)
needs_triton = pytest.mark.skipif(not triton.is_installed(), reason="no triton")


def _python(*arguments, **env):
    done = subprocess.run([sys.executable, *arguments], env={**os.environ, **env}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_triton
def test_in_the_interpreter():
    """All of triton_interpreted.py, none of it skipped."""
    tests = HERE / "triton_interpreted.py"
    out = _python("-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests), TRITON_INTERPRET="1")
    assert " passed" in out.splitlines()[-1] and "skipped" not in out, out


def test_importing_the_package_does_not_import_triton():
    """torch itself may import it: what is asked is that the package's kernels are not."""
    code = """
import json, sys
import torch
sys.modules.pop("triton", None)
sys.modules["triton"] = None
import resnext_kernels as rk
print(json.dumps([rk.available_backends()["triton"], [m for m in sys.modules if "triton_kernels." in m]]))
"""
    reason, modules = json.loads(_python("-c", code).splitlines()[-1])
    assert "pip install triton" in reason
    expected = ("config_tables", "configs", "configs_wgrad", "launch")
    assert sorted(modules) == [f"resnext_kernels.triton_kernels.{name}" for name in expected]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_reasons_without_a_gpu():
    problem = ConvProblem.parse("n1_c16_h5_g4")
    with rk.use_backend("triton"), pytest.raises(rk.backends.BackendError) as error:
        rk.functional.grouped_conv2d(torch.zeros(1, 16, 5, 5), torch.zeros(16, 4, 3, 3), padding=1, groups=4)
    reasons = triton.unsupported_reasons("grouped_conv2d", replace(problem, dtype=torch.float64))
    for text in ("cuda tensors, got cpu", "channels_last"):
        assert text in str(error.value)
    assert any("float64" in reason for reason in reasons)


def test_reasons_of_devices_and_sizes(monkeypatch):
    monkeypatch.setattr(triton, "missing", lambda: None)
    monkeypatch.setattr(triton, "architecture", lambda index: 75)
    problem = replace(ConvProblem.parse("n1_c4096_h1024_g32_float16_cuda"), layout="nhwc")
    old, large = triton.unsupported_reasons("grouped_conv2d", problem)
    assert "compute capability 8.0 and up, got 7.5" in old and "2**31" in large
    assert triton.not_automatic_reasons("grouped_conv2d", problem) and not triton.measured()


class _Kernel:
    """In the place of a kernel and of what compiling it gives: calls are recorded."""

    arg_names = ["x", "y", "n", "FIRST", "SECOND"]
    function, packed_metadata = "function", "metadata"

    def __init__(self, calls, compiled=None):
        self.calls, self.compiled = calls, compiled

    def __getitem__(self, grid):
        def run(*args, **options):
            self.calls.append((grid, args, options))
            return self.compiled

        return run

    def run(self, *args):
        self.calls.append(args)


@needs_triton
def test_a_second_launch_goes_by_what_the_first_compiled(monkeypatch):
    import triton as installed

    driver = SimpleNamespace(get_current_stream=lambda device: f"stream of {device}")
    monkeypatch.setattr(type(installed.runtime.driver), "active", driver)
    first, second = [], []
    launch = Launch(_Kernel(first, _Kernel(second)), (2, 1, 1), (7,), warps=8, stages=2, SECOND="b", FIRST="a")
    x = torch.zeros(1)
    launch(x, None)
    assert first == [((2, 1, 1), (x, None, 7), dict(FIRST="a", SECOND="b", num_warps=8, num_stages=2))] and not second
    launch(x, None)
    run = 2, 1, 1, "stream of -1", "function", "metadata", None, None, None, x, None, 7, "a", "b"
    assert len(first) == 1 and second == [run]
    with monkeypatch.context() as profiled:
        profiled.setattr(installed.knobs.runtime.launch_enter_hook, "calls", [print])
        launch(x, None)  # by triton's own way, which tells profilers
    assert len(first) == 1 and second[1:] == [((2, 1, 1), (x, None, 7, "a", "b"), {})]
    launch(x, x)  # of another signature
    assert len(first) == 2
    Launch(_Kernel(first), (0, 1, 1), (7,), FIRST="a", SECOND="b")(x, None)  # of nothing
    assert len(first) == 2


def _every_problem():
    named = [*problems.cardinality(256).values(), *problems.resnext50(64).values(), *problems.regnety_016(64).values()]
    texts = ["n2_c12_h5_g2_k5", "n1_c64_h9_g8_d3_p3", "n1_c64_h9_g1_s2", "n1_c64_o8_h9_g4", "n1_c64_h9_g32_s2_d2",
             "n1_c7_h3_g7"]  # fmt: skip
    each = [*named, *map(ConvProblem.parse, texts)]
    return [replace(problem, dtype=dtype, layout="nhwc") for problem in each for dtype in triton.DTYPES]


def test_every_problem_has_a_configuration_and_a_tile_that_fits_it():
    for problem in _every_problem():
        found = {configs.config(architecture, problem) for architecture in ARCHITECTURES}
        assert all(config.warps in (1, 2, 4, 8) and 1 <= config.stages <= 4 for config in found)
        if configs.form(problem) == "gather":
            assert all(size >= 16 for size in configs.gather(problem).values())
            continue
        pack = configs.pack(problem)
        # tl.dot takes K of 16 and up, which the interpreter does not ask for.
        assert pack["KC"] * pack["PX"] >= 16 and pack["GI"] <= pack["KC"] and pack["GO"] <= pack["NC"], problem
        assert pack["TILE"] % pack["LANES"] == 0
        assert pack["GI"] * problem.c_out == pack["GO"] * problem.c_in, problem


def test_the_grid_covers_every_position_row_and_channel():
    for problem in _every_problem():
        if configs.form(problem) == "gather":
            continue
        pack, (positions, strips, blocks, chunks, rows) = configs.pack(problem), configs.rows_grid(problem)
        oh, ow = problem.output_size
        assert positions * pack["PX"] >= problem.n * ow and strips * pack["TILE"] >= positions
        assert blocks * pack["PACKS"] * pack["GO"] >= problem.c_out
        assert chunks // problem.dilation[0] * rows * problem.dilation[0] >= oh


def test_wgrad_covers_everything_in_short_sums():
    """Of up to 8192 products; partial sums of a tenth of the images' bytes, or as few as make enough programs."""
    for problem in _every_problem():
        assert all(configs_wgrad.config(each, problem, with_dz=True).warps in (4, 8) for each in ARCHITECTURES)
        oh, ow = problem.output_size
        if configs.form(problem) == "gather":
            positions, programs, splits, steps = configs_wgrad.gather_grid(problem)
            products = steps * configs_wgrad.gather(problem)["BM"]
            assert positions == problem.n * oh * ow <= splits * products
        else:
            pack, (positions, strips, walks, programs, chunks, rows) = (
                configs_wgrad.pack(problem), configs_wgrad.rows_grid(problem)
            )  # fmt: skip
            assert positions == problem.n * ow <= walks * strips * pack["TILE"]
            assert programs * pack["PACKS"] * pack["GO"] >= problem.c_out
            assert pack["GO"] <= 16 * pack["PARTS"] and pack["GI"] <= pack["KC"] and pack["TILE"] >= 16
            assert chunks // problem.dilation[0] * rows * problem.dilation[0] >= oh
            splits, products = walks * chunks, strips * rows * pack["TILE"]
        assert products <= 8192, problem
        small = 4 * splits * configs_wgrad.elements(problem) <= problem.bytes / 10
        # What one split less would come to: programs that are too few, or sums that are too long.
        assert small or splits == 1 or splits * programs < 2 * 132 + programs or products > 4096, problem


def test_splits_of_wgrad_are_added_by_tiles_of_a_size():
    for splits in (0, 1, 2, 3, 33, 64, 65, 900):
        tile = configs_wgrad.merge(splits)
        assert all(math.log2(size).is_integer() for size in tile.values())
        assert min(splits, 64) <= tile["SPLITS"] <= 64 and tile["SPLITS"] * tile["BLOCK"] <= 2048


def test_every_load_says_what_stands_in_for_what_it_masks():
    """Without other= that is undefined."""
    import ast

    for file in (HERE.parent / "resnext_kernels" / "triton_kernels").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "tl.load":
                masked = len(node.args) > 1 or any(word.arg == "mask" for word in node.keywords)
                has_other = len(node.args) > 2 or any(word.arg == "other" for word in node.keywords)
                assert has_other or not masked, f"{file.name}:{node.lineno}"
