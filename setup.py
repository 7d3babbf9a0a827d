"""Builds the native modules with CMake and Ninja; it needs no torch. All metadata is in pyproject.toml."""

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
PACKAGE = "resnext_kernels"
# What CMakeLists.txt says of them holds for environment variables of these names.
OPTIONS = ("RESNEXT_KERNELS_CUDA", "RESNEXT_KERNELS_CUDA_ARCHITECTURES")


def why_pure() -> str | None:
    """Why this machine gets the package without native kernels; None where they are built."""
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
        return f"they are built on Linux x86-64 and aarch64, this is {platform.system()} {platform.machine()}"
    compilers = shlex.split(os.environ.get("CXX", ""))[:1] or ["c++", "g++", "clang++"]
    if not any(map(shutil.which, compilers)):
        return f"no C++ compiler found (tried {', '.join(compilers)})"
    return None


class CMakeBuild(build_ext):
    """One CMake run builds every native module; what it built is what gets installed, whatever its name."""

    def build_extension(self, ext):
        import pybind11

        for stale in self._built():
            stale.unlink()
        configure = [
            "cmake", "-S", str(ROOT), "-B", self.build_temp, "-G", "Ninja",
            "--fresh",  # an old cache names the Ninja of a build environment that is gone, and another CXX
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={self._folder()}", "-DCMAKE_BUILD_TYPE=Release",
            f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            *(f"-D{name}={os.environ[name]}" for name in OPTIONS if name in os.environ),
        ]  # fmt: skip
        # Without build isolation, cmake and ninja may be in a virtual environment that is not activated.
        path = os.pathsep.join([os.environ.get("PATH", os.defpath), sysconfig.get_path("scripts")])
        for command in (configure, ["cmake", "--build", self.build_temp]):
            subprocess.run(command, check=True, env={**os.environ, "PATH": path})

    def _folder(self) -> Path:
        return Path(self.build_lib, PACKAGE).resolve()

    def _built(self) -> list[Path]:
        return sorted(self._folder().glob("*.so"))

    # setuptools itself would install, and carry to the source tree of an editable install, only what is declared.
    def get_output_mapping(self):
        return {str(built): str(ROOT / PACKAGE / built.name) for built in self._built()}

    def get_outputs(self):
        return list(self.get_output_mapping())

    def copy_extensions_to_source(self):
        for built, source in self.get_output_mapping().items():
            self.copy_file(built, source)


reason = why_pure()
if reason and os.environ.get("RESNEXT_KERNELS_CUDA") == "on":
    sys.exit(f"RESNEXT_KERNELS_CUDA=on: no native kernels: {reason}")
if reason:
    print(f"{PACKAGE}: installing without native kernels: {reason}", file=sys.stderr)
setup(
    ext_modules=[] if reason else [Extension(f"{PACKAGE}._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
