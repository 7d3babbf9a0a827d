"""The head of the results: what this machine is and runs."""

import re
import shutil
import subprocess

import torch

from resnext_kernels.testing import machine

from . import ROOT
from .native import find_nvcc

# Clocks that move are as they were with the GPU idle.
QUERIES = ("driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "power.limit",
           "temperature.gpu")  # fmt: skip


def smi(*queries) -> dict[str, str]:
    """nvidia-smi's answers; what it does not know is left out."""
    answers = {}
    for query in queries if shutil.which("nvidia-smi") else ():
        command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader", "--id=0"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
        if done.returncode == 0 and "[" not in done.stdout:
            answers[query] = done.stdout.strip()
    return answers


def main(stage) -> str:
    header = machine.describe() | {"commit": machine.commit(ROOT), "nvcc": "not found"}
    if nvcc := find_nvcc():
        printed = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
        header["nvcc"] = next(iter(re.findall(r"V([\d.]+)", printed)), printed)
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        header |= {
            "capability": f"{properties.major}.{properties.minor}", "sms": properties.multi_processor_count,
            "l2_bytes": properties.L2_cache_size, "memory_bytes": properties.total_memory,
            "cudnn": torch.backends.cudnn.version(), "cuda": torch.version.cuda,
        }  # fmt: skip
    stage.row(**header, **smi(*QUERIES))
    return ""
