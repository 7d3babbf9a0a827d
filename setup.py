"""Builds the native library with CMake and Ninja; it needs no torch. All metadata is in pyproject.toml."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


class CMakeBuild(build_ext):
    """One CMake run for every native module; without a C++ compiler the package installs as pure Python."""

    def run(self):
        if os.name != "posix" or not shutil.which(os.environ.get("CXX", "c++")):
            print("resnext_kernels: no C++ compiler found, installing without native kernels", file=sys.stderr)
            self.extensions = []
        super().run()

    def build_extension(self, ext):
        import pybind11

        output = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        # --fresh: a cache left by an isolated build names a Ninja that is gone.
        configure = [
            "cmake", "--fresh", "-G", "Ninja", "-S", str(ROOT), "-B", str(build),
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={output}", "-DCMAKE_BUILD_TYPE=Release",
            f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        ]  # fmt: skip
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", str(build)], check=True)


setup(ext_modules=[Extension("resnext_kernels._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
