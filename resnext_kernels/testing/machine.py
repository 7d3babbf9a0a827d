"""What a measurement must be read with: machine, versions, threads, build, commit."""

import datetime
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import torch

from .. import __version__, _native, tables


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def commit(folder: Path) -> str:
    """The commit of the checkout that `folder` lies in."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return f"release {__version__}"


def describe() -> dict[str, object]:
    """One flat dictionary, for `python -m resnext_kernels info` and the head of a benchmark's JSON file."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    native = _native.missing or f"{_native._C.build_info()['compiler']}, {'/'.join(_native._C.build_info()['isas'])}"
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "cpu": tables.cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "resnext_kernels": __version__,
        "torch": torch.__version__,
        "triton": _version("triton"),
        "native": native,
        "cpu_isa": _native.cpu_isa,
    }
