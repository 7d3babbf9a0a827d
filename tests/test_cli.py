"""python -m resnext_kernels and python benchmarks/run.py, as a user runs them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from resnext_kernels import __main__ as cli
from resnext_kernels import __version__, _native

ROOT = Path(__file__).parents[1]


def run(*arguments, cwd=None):
    return subprocess.run([sys.executable, *map(str, arguments)], cwd=cwd, capture_output=True, text=True)


def test_info(capsys):
    assert cli.main(["info"]) == 0
    shown = capsys.readouterr().out
    assert __version__ in shown and torch.__version__ in shown and "backend reference" in shown
    assert cli.main(["info", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows["threads"] == torch.get_num_threads()
    assert rows["backend cpu"] == (_native.missing or "available")


def test_info_in_the_checkout_shows_the_native_modules(tmp_path):
    """The checkout's own folder of the package must not hide the installed native modules."""
    rows = [json.loads(run("-m", "resnext_kernels", "info", "--json", cwd=cwd).stdout) for cwd in (ROOT, tmp_path)]
    assert rows[0]["native module"] == rows[1]["native module"]
    assert rows[0]["backend cpu"] == rows[1]["backend cpu"]


def test_explain(capsys):
    assert cli.main(["explain", "n8_c128_h56_g32_nhwc"]) == 0
    shown = capsys.readouterr().out
    assert "n8_c128_h56_w56_o128_k3x3_s1x1_p1x1_d1x1_g32_float32_nhwc_cpu" in shown
    assert "not measured on this CPU" in shown
    assert cli.main(["explain", "c8_h8_float64", "--backend", "cpu"]) == 0
    assert "none" in capsys.readouterr().out


@pytest.mark.parametrize("arguments, words", [(["c8"], "at least channels"), (["c8_h8", "--backend", "x"], "got 'x'")])
def test_explain_explains_a_mistake(arguments, words, capsys):
    assert cli.main(["explain", *arguments]) == 2
    assert words in capsys.readouterr().out


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "rows.json"
    result = run(ROOT / "benchmarks" / "run.py", "--quick", "--json", path, cwd=path.parent)
    assert result.returncode == 0, result.stderr
    return result.stdout, json.loads(path.read_text())


def test_report_has_every_field(report):
    printed, written = report
    assert {"cpu", "threads", "torch", "triton", "python", "commit", "date", "cpu_isa"} <= set(written["header"])
    fields = {"problem", "pass", "backend", "dtype", "layout", "median_ms", "p20_ms", "p80_ms", "baselines", "ratio",
              "tflops", "gbps", "max_error"}  # fmt: skip
    assert {(row["name"], row["pass"], row["layout"]) for row in written["rows"]} == {
        (name, a_pass, layout)
        for name in ("32x4d conv2", "32x4d conv3")
        for a_pass in ("eval", "train")
        for layout in ("nchw", "nhwc")
    }
    for row in written["rows"]:
        assert fields <= set(row)
        assert 0 < row["p20_ms"] <= row["median_ms"] <= row["p80_ms"]
        assert row["ratio"] == pytest.approx(min(row["baselines"].values()) / row["median_ms"])
        assert f"{row['ratio']:.2f}x" in printed


@pytest.mark.skipif(_native.missing is not None, reason=f"{_native.missing}")
def test_report_names_the_backend_that_ran(report):
    eager, folded = ({f"{kind} nchw", f"{kind} channels_last"} for kind in ("eager", "folded"))
    expected = {"eval": ("cpu", eager | folded), "train": ("cpu", eager)}
    for row in report[1]["rows"]:
        assert (row["backend"], set(row["baselines"])) == expected[row["pass"]]


def test_report_refuses_a_wrong_kernel(tmp_path):
    """A kernel outside its error gate stops the run before anything is timed."""
    code = f"""
import sys
sys.path.insert(0, {str(ROOT / "benchmarks")!r})
from resnext_kernels.backends import cpu, reference
cpu.unsupported_reasons = lambda op, problem: []
cpu.grouped_conv2d_affine_act = lambda x, *rest: reference.grouped_conv2d_affine_act(x.roll(1, 3), *rest)
import run
run.main(["--quick", "--passes", "eval", "--backend", "cpu"])
"""
    result = run("-c", code, cwd=tmp_path)
    assert result.returncode != 0 and "times the allowed error" in result.stderr


def test_report_without_a_gpu_says_so():
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    result = run(ROOT / "benchmarks" / "run.py", "--device", "cuda")
    assert result.returncode == 2 and "--device: expected a device that torch sees" in result.stderr


def test_pytest_benchmark_of_the_ops(tmp_path):
    options = ["-k", "affine_act and 1024 and cpu", "--benchmark-disable", "-p", "no:cacheprovider", "-c", "/dev/null"]
    result = run("-m", "pytest", ROOT / "benchmarks", "--rootdir", tmp_path, *options, cwd=tmp_path)
    assert result.returncode == 0 and " passed" in result.stdout, result.stdout
