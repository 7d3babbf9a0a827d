"""What gets built and installed, and that the package imports wherever it can be installed."""

import importlib.machinery
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import cuda_budgets
import pybind11
import pytest

import resnext_kernels as rk

ROOT = Path(__file__).parents[1]
NAME = "resnext_kernels"
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
SUFFIX = importlib.machinery.EXTENSION_SUFFIXES[0]

builds_native = pytest.mark.skipif(
    sys.platform != "linux"
    or platform.machine() not in ("x86_64", "aarch64")
    or not any(map(shutil.which, ("c++", "g++", "clang++"))),
    reason="native modules are built on Linux x86-64 and aarch64 with a C++ compiler",
)
# PTX alone takes a third of the time of the default; that one is what the installation under test was built with.
QUICK = {"RESNEXT_KERNELS_CUDA_ARCHITECTURES": "90-virtual"}
NO_NVCC = {"CUDACXX": "/nonexistent/nvcc"}


def run(command, cwd, **env):
    """The command's output; a failure shows all of it."""
    env = {key: value for key, value in {**os.environ, **env}.items() if value is not None}
    result = subprocess.run(
        list(map(str, command)), cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


def python(code, cwd, path="", **env):
    """Runs code in a new process, with `path` before the installed packages; what its last line prints is JSON."""
    output = run([sys.executable, "-c", code], cwd, PYTHONPATH=str(path), **env)
    return json.loads(output.splitlines()[-1])


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy to build in, with what a checkout may hold besides: a module built in place by another Python."""
    copy = tmp_path_factory.mktemp("checkout") / "copy"
    junk = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "*.so")
    shutil.copytree(ROOT, copy, ignore=junk)
    (copy / NAME / "_C.cpython-39-x86_64-linux-gnu.so").touch()
    return copy


@pytest.fixture(scope="module")
def sdist(checkout, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sdist")
    run([sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", folder], checkout)
    return next(folder.glob("*.tar.gz"))


def build_wheel(source, folder, **env):
    run([*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source], folder, **env)
    return next(folder.glob("*.whl"))


def unpack(wheel, folder):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    return build_wheel(sdist, tmp_path_factory.mktemp("wheel"), **QUICK)


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    return unpack(wheel, tmp_path_factory.mktemp("installed"))


def files(folder):
    """Every file of a folder of the checkout but what Python and the build made."""
    found = (file.relative_to(ROOT) for file in (ROOT / folder).rglob("*") if file.is_file())
    return {file.as_posix() for file in found if file.suffix != ".so" and "__pycache__" not in file.parts}


def content(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def info(folder, cwd):
    """What `python -m resnext_kernels info` says of the package in a folder."""
    code = f"from {NAME}.__main__ import main; main(['info', '--json'])"
    return json.loads(run([sys.executable, "-c", code], cwd, PYTHONPATH=str(folder)))


def has_nvcc():
    try:
        return bool(cuda_budgets.find_nvcc())
    except cuda_budgets.ToolMissing:
        return False


def test_sdist_holds_all_that_is_built_tested_and_measured(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    expected = {"CMakeLists.txt", "LICENSE", "README.md", "pyproject.toml", "setup.py"}
    assert names >= expected.union(*map(files, ("csrc", NAME, "tests", "benchmarks", "scripts")))
    assert not [name for name in names if name.endswith((".so", ".pyc"))]


@builds_native
def test_wheel_from_sdist_holds_the_package_and_every_native_module(wheel, installed):
    code = f"import json, {NAME}; print(json.dumps({NAME}._native._C.build_info()['modules']))"
    modules = python(code, installed, installed) + ["_cuda"] * has_nvcc()
    assert "_C" in modules
    assert content(wheel) == files(NAME) | {f"{NAME}/{module}{SUFFIX}" for module in modules}
    assert f"-{rk.__version__}-" in wheel.name


@builds_native
def test_the_cuda_module_loads_without_a_driver_and_says_what_it_is_for(installed, tmp_path):
    if not has_nvcc():
        pytest.skip("no nvcc here")
    code = f"import json; from {NAME} import _native; print(json.dumps(_native._cuda.build_info()))"
    built = python(code, tmp_path, installed, CUDA_VISIBLE_DEVICES="")
    assert built["nvcc"] == cuda_budgets.nvcc_version(cuda_budgets.find_nvcc())
    assert built["architectures"] == QUICK["RESNEXT_KERNELS_CUDA_ARCHITECTURES"]
    assert {f"CUDA {key}": value for key, value in built.items()}.items() <= info(installed, tmp_path).items()


@builds_native
def test_without_nvcc_the_build_goes_on_and_says_so(checkout, tmp_path):
    options = [f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
    configured = run(["cmake", "-S", checkout, "-B", tmp_path, "-G", "Ninja", *options], tmp_path, **NO_NVCC)
    assert "Building no CUDA kernels: no nvcc" in configured


@builds_native
def test_cuda_kernels_that_are_demanded_are_built_or_an_error(sdist, tmp_path):
    with pytest.raises(AssertionError, match="RESNEXT_KERNELS_CUDA=on: no nvcc"):
        build_wheel(sdist, tmp_path, RESNEXT_KERNELS_CUDA="on", **NO_NVCC)
    with pytest.raises(AssertionError, match="RESNEXT_KERNELS_CUDA=on: no native kernels: no C.. compiler"):
        build_wheel(sdist, tmp_path, RESNEXT_KERNELS_CUDA="on", CXX="/nonexistent/c++")


@builds_native
def test_compile_failure_is_an_error(sdist, tmp_path):
    with pytest.raises(AssertionError, match="is not able to compile"):
        build_wheel(sdist, tmp_path, CXX="false")


@pytest.fixture(scope="module")
def pure_wheel(sdist, tmp_path_factory):
    return build_wheel(sdist, tmp_path_factory.mktemp("pure"), CXX="/nonexistent/c++")


def test_without_a_compiler_the_wheel_is_pure_python_and_says_how_to_get_the_rest(pure_wheel, tmp_path):
    assert content(pure_wheel) == files(NAME)
    assert pure_wheel.name.endswith("-py3-none-any.whl")
    folder = unpack(pure_wheel, tmp_path)
    code = f"import json, {NAME} as rk; print(json.dumps([rk.__file__, rk.available_backends()]))"
    file, backends = python(code, folder, folder)
    assert Path(file).is_relative_to(folder)
    assert backends["aten"] == backends["reference"] == "available"
    assert "native kernels" in backends["cpu"] and "native kernels" in info(folder, tmp_path)["CUDA module"]
    if sys.platform == "linux":
        assert "C++ compiler" in backends["cpu"] and "pip install" in backends["cpu"]


def test_reason_on_other_platforms(pure_wheel, tmp_path):
    folder = unpack(pure_wheel, tmp_path)
    code = f"""
import json, os, platform
import torch
platform.system, platform.machine = lambda: "Windows", lambda: "AMD64"
del os.register_at_fork
import {NAME}
print(json.dumps({NAME}.available_backends()["cpu"]))
"""
    assert python(code, folder, folder).endswith("this is Windows AMD64")


# In place of the real build, which takes longer: two modules, of which setup.py declares one.
TWO_MODULES = """
cmake_minimum_required(VERSION 3.24)
project(two_modules LANGUAGES CXX)
find_package(Python REQUIRED COMPONENTS Interpreter Development.Module)
foreach(name _C _second)
  Python_add_library(${name} MODULE WITH_SOABI module.cpp)
  target_compile_definitions(${name} PRIVATE NAME="${name}" INIT=PyInit_${name})
endforeach()
"""
MODULE = """
#include <Python.h>
static PyModuleDef definition = {PyModuleDef_HEAD_INIT, NAME};
PyMODINIT_FUNC INIT() { return PyModule_Create(&definition); }
"""


@pytest.fixture
def two_modules(checkout, tmp_path):
    copy = shutil.copytree(checkout, tmp_path / "copy", ignore=shutil.ignore_patterns("*.so"))
    (copy / "CMakeLists.txt").write_text(TWO_MODULES)
    (copy / "module.cpp").write_text(MODULE)
    return copy


@builds_native
def test_editable_install_carries_every_module_that_cmake_built(two_modules, tmp_path):
    apart = ["--ignore-installed", "--prefix", tmp_path / "prefix"]  # leaves this environment as it is
    run([*PIP, "install", "--no-deps", "--no-build-isolation", *apart, "--editable", two_modules], tmp_path)
    code = "import json, _C, _second; print(json.dumps([_C.__file__, _second.__file__]))"
    expected = [str(two_modules / NAME / f"{module}{SUFFIX}") for module in ("_C", "_second")]
    assert python(code, tmp_path, two_modules / NAME) == expected


@builds_native
def test_a_module_that_is_no_longer_built_is_not_installed(two_modules, tmp_path):
    build_wheel(two_modules, tmp_path)
    (two_modules / "CMakeLists.txt").write_text(TWO_MODULES.replace("_C _second", "_C"))
    assert content(build_wheel(two_modules, tmp_path)) == files(NAME) | {f"{NAME}/_C{SUFFIX}"}


@builds_native
def test_in_a_checkout_the_installed_native_modules_serve(checkout, installed):
    code = f"import json, {NAME} as rk; print(json.dumps([rk.__file__, rk._native._C.__file__, rk._native.missing]))"
    python_file, native_file, missing = python(code, checkout, installed)
    assert python_file == str(checkout / NAME / "__init__.py")
    assert native_file == str(installed / NAME / f"_C{SUFFIX}")
    assert missing is None


def test_imports_without_triton(tmp_path):
    code = f"import json, sys; sys.modules['triton'] = None; import {NAME}; print(json.dumps({NAME}.__version__))"
    assert python(code, tmp_path) == rk.__version__


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="no /proc/self/maps that lists loaded libraries")
@pytest.mark.parametrize("visible", ["", None], ids=["hidden_gpus", "visible_gpus"])
def test_import_leaves_the_gpu_alone(visible, tmp_path):
    code = f"""
import json
import torch
def maps():
    return {{line.split()[-1] for line in open("/proc/self/maps") if "libcuda.so" in line}}
before = maps()
import {NAME}
print(json.dumps([torch.cuda.is_initialized(), sorted(maps() - before)]))
"""
    assert python(code, tmp_path, CUDA_VISIBLE_DEVICES=visible) == [False, []]
