"""scripts/mutate_cuda.py and mutate_triton.py: their subjects cover the kernels, their defects are as they say."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")


def _script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_cuda_kernel_has_a_subject():
    script = _script("mutate_cuda")
    subjects = script.SUBJECTS.values()
    there = {path.name for path in script.CUDA.iterdir()}
    assert {name for each in subjects for name in each.sources + each.units} <= there
    missing = {name for name in there if name.endswith(".cuh")} - {name for each in subjects for name in each.sources}
    assert not missing, "add a row to SUBJECTS of scripts/mutate_cuda.py"
    assert all((ROOT / file).exists() for each in subjects for file, _ in each.tests)


def test_defects_of_cuda():
    changes = set(_script("mutate_cuda").changes("  if (a[i] < n && b) return;"))
    assert changes == {
        "  ;", "  if (a[i] <= n && b) return;", "  if (a[i] < n || b) return;", "  if (a[i + 1] < n && b) return;",
        "  if (true) return;", "  if (false) return;",
    }  # fmt: skip


def test_every_triton_kernel_has_a_subject():
    script = _script("mutate_triton")
    files = {path.stem for path in script.KERNELS.glob("*.py") if "@triton.jit" in path.read_text()}
    assert files == set(script.SUBJECTS)


def test_defects_of_triton(tmp_path, monkeypatch):
    script = _script("mutate_triton")
    monkeypatch.setattr(script, "KERNELS", tmp_path)
    (tmp_path / "kernel.py").write_text("def kernel(x, n):\n    tl.store(x + n, tl.maximum(n, 2), (n < 3) & live)\n")
    lines = {line.strip() for _, _, line in script.defects("kernel.py", "")}
    assert lines == {
        "pass", "tl.store((x - n), tl.maximum(n, 2), (n < 3) & live)",
        "tl.store(x + n, tl.minimum(n, 2), (n < 3) & live)",
        "tl.store(x + n, tl.maximum(n, 3), (n < 3) & live)", "tl.store(x + n, tl.maximum(n, 2), (n <= 3) & live)",
        "tl.store(x + n, tl.maximum(n, 2), (n < 4) & live)", "tl.store(x + n, tl.maximum(n, 2), live)",
        "tl.store(x + n, tl.maximum(n, 2), n < 3)",
    }  # fmt: skip
