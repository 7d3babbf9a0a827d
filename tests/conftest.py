import os
from pathlib import Path

import emulated
import pytest
import torch
from filelock import FileLock

import resnext_kernels as rk
from resnext_kernels import _native, tables


def pytest_addoption(parser):
    parser.addoption("--cases", help="a folder with grouped_3x3.csv: every row whose size allows is run")
    parser.addoption("--sanitize", action="store_true", help="also run the native library under sanitizers: minutes")
    parser.addoption("--triton-all", action="store_true", help="compile every Triton kernel for every GPU: minutes")


@pytest.fixture(autouse=True)
def no_tables(monkeypatch, tmp_path):
    """What was measured on this machine must not decide what tests run."""
    monkeypatch.setenv("RESNEXT_KERNELS_TABLES", str(tmp_path))
    monkeypatch.setattr(tables, "SHIPPED", tmp_path / "shipped")
    monkeypatch.setattr(tables, "ROWS", {})
    monkeypatch.setattr(tables, "_SLOWEST", {})
    monkeypatch.setattr(tables, "_DEVICES", set())


@pytest.fixture(params=["reference", "cpu,aten"])
def swap_backend(request):
    """A swapped model runs its kernels, not the original forward."""
    with rk.use_backend(request.param):
        yield request.param


@pytest.fixture(scope="session")
def emulated_module(tmp_path_factory):
    if reason := emulated.why_not():
        pytest.skip(reason)
    if built := os.environ.get("RESNEXT_KERNELS_EMULATED"):
        return emulated.load(Path(built))
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # of all processes: the first one builds it
    with FileLock(folder / "emulated.lock"):
        return emulated.load(emulated.build(folder / "emulated"))


@pytest.fixture
def emulated_cuda(emulated_module):
    """The backend `cuda` on CPU tensors; yields the module, whose `configure` sets how the emulation runs."""
    with emulated.as_cuda(emulated_module):
        emulated_module.configure()
        yield emulated_module


@pytest.fixture(autouse=True)
def nan_filled_memory():
    """torch.empty returns NaN, so that an element a kernel does not write shows."""
    before = torch.utils.deterministic.fill_uninitialized_memory, torch.are_deterministic_algorithms_enabled()
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.utils.deterministic.fill_uninitialized_memory = before[0]
    torch.use_deterministic_algorithms(before[1])


def pytest_collection_modifyitems(items):
    """Without native modules, a supported installation, what needs them is skipped and says why."""
    if _native.missing is None:
        return
    for item in items:
        parameters = getattr(item, "callspec", None)
        if item.get_closest_marker("native") or (parameters and "cpu" in parameters.params.values()):
            item.add_marker(pytest.mark.skip(reason=_native.missing))
