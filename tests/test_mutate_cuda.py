"""scripts/mutate_cuda.py: its subjects cover the kernels, its defects are what it says."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")


def _script():
    spec = importlib.util.spec_from_file_location("mutate_cuda", ROOT / "scripts" / "mutate_cuda.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_kernel_has_a_subject():
    script = _script()
    subjects = script.SUBJECTS.values()
    there = {path.name for path in script.CUDA.iterdir()}
    assert {name for each in subjects for name in each.sources + each.units} <= there
    missing = {name for name in there if name.endswith(".cuh")} - {name for each in subjects for name in each.sources}
    assert not missing, "add a row to SUBJECTS of scripts/mutate_cuda.py"
    assert all((ROOT / file).exists() for each in subjects for file, _ in each.tests)


def test_defects():
    changes = set(_script().changes("  if (a[i] < n && b) return;"))
    assert changes == {
        "  ;", "  if (a[i] <= n && b) return;", "  if (a[i] < n || b) return;", "  if (a[i + 1] < n && b) return;",
        "  if (true) return;", "  if (false) return;",
    }  # fmt: skip
