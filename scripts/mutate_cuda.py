"""How much of the CUDA forward the tests notice: small defects, one at a time, under emulation.

python scripts/mutate_cuda.py [--every N] prints each defect that survives and, last, how many were caught. Every
defect costs a build of about ten seconds, so that --every N takes each N-th. Defects are mechanical: a barrier, wait,
commit or other statement left out, a comparison or a sum turned round, a number off by one, two fragments exchanged.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = (
    "grouped_conv2d_rows.cuh",
    "grouped_conv2d_block.cuh",
    "grouped_conv2d_fwd_tensor.cuh",
    "grouped_conv2d_prepack.cuh",
)
# What is built anew for each defect: the half of the kernels of one type finds what the other would.
UNITS = ("grouped_conv2d_fwd_half.cu", "grouped_conv2d_fwd_tensor.cu")
TESTS = "test_exact or test_gates or test_nothing"
FLAGS = ["-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-ftrivial-auto-var-init=pattern", "-w",
         "-ffp-contract=off", "-DRESNEXT_KERNELS_EMULATION"]  # fmt: skip

TURNED = {" < ": " <= ", " <= ": " < ", " >= ": " > ", " == ": " != ", " && ": " || ", " || ": " && ", " + ": " - ",
          " - ": " + ", " % ": " / ", " / ": " % "}  # fmt: skip
EXCHANGED = {"w[0], w[1]": "w[1], w[0]", "w[2 * n], w[2 * n + 1]": "w[2 * n + 1], w[2 * n]",
             "last[2 * n], last[2 * n + 1]": "last[2 * n + 1], last[2 * n]", "sum[0], n, 0": "sum[1], n, 0",
             "words[2 * n + half]": "words[2 * half + n]", "low | high": "high | low"}  # fmt: skip
CALLS = r"sync_threads|cp_async_\w+|block\.\w+|warp\.\w+|fill_tables|clear_stages|clear|if \(kh == 0"
STATEMENT = re.compile(rf"^\s*({CALLS}).*;$")


def defects(text: str):
    """(line number, the line as it becomes) of every defect of a source."""
    for number, line in enumerate(text.splitlines()):
        code = line.split("//")[0]
        if re.match(r"\s*(#|//|template|static_assert|using|namespace|static constexpr)", line) or not code.strip():
            continue
        if STATEMENT.match(code):
            yield number, re.sub(r"\S.*", ";", code, count=1)
        for old, new in (TURNED | EXCHANGED).items():
            for match in re.finditer(re.escape(old), code):
                yield number, code[: match.start()] + new + code[match.end() :]
        for match in re.finditer(r"(?<![\w.<])\d+(?![\w.>])", code):
            yield number, code[: match.start()] + str(int(match[0]) + 1) + code[match.end() :]


def compile_unit(unit, folder, target, *first_includes):
    includes = [f"-I{path}" for path in (*first_includes, ROOT / "csrc", ROOT / "csrc/cuda", ROOT / "tests/cuda")]
    command = ["g++", *FLAGS, *includes, "-x", "c++", "-c", folder / unit, "-o", target]
    return subprocess.run(command, capture_output=True).returncode == 0


def build_rest(folder):
    """The objects that no defect touches."""
    rest = [path for path in (ROOT / "csrc/cuda").glob("*.c*") if path.suffix != ".cuh" and path.name not in UNITS]
    includes = subprocess.run([sys.executable, "-m", "pybind11", "--includes"], capture_output=True, text=True).stdout
    objects = []
    for path in rest:
        objects.append(folder / f"{path.name}.o")
        paths = [f"-I{ROOT / each}" for each in ("csrc", "csrc/cuda", "tests/cuda")] + includes.split()
        command = ["g++", *FLAGS, "-DRK_MODULE=_emulated", *paths, "-x", "c++", "-c", path, "-o", objects[-1]]
        subprocess.run(command, check=True)
    return objects


def is_caught(source, number, line, rest) -> str:
    """ "build", "tests" or "", if nothing notices."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path in (ROOT / "csrc/cuda").glob("grouped_conv2d_*"):
            shutil.copy(path, folder)
        lines = (folder / source).read_text().splitlines()
        lines[number] = line
        (folder / source).write_text("\n".join(lines) + "\n")
        objects = [folder / f"{unit}.o" for unit in UNITS]
        if not all(compile_unit(unit, folder, target, folder) for unit, target in zip(UNITS, objects, strict=True)):
            return "build"
        module = folder / "_emulated.so"
        subprocess.run(["g++", "-shared", "-o", module, *objects, *rest], check=True)
        command = [sys.executable, "-m", "pytest", "-qx", "-p", "no:cacheprovider", "-k",
                   f"({TESTS}) and not bfloat16", ROOT / "tests/test_cuda_forward.py"]  # fmt: skip
        environment = os.environ | {"RESNEXT_KERNELS_EMULATED": str(module)}
        try:
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
        except subprocess.TimeoutExpired:
            return "tests"
        return "" if done.returncode == 0 else "tests"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, help="only each N-th defect")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    options = parser.parse_args()
    made = [(source, *defect) for source in SOURCES for defect in defects((ROOT / "csrc/cuda" / source).read_text())]
    made = made[:: options.every]
    with tempfile.TemporaryDirectory() as folder:
        rest = build_rest(Path(folder))
        with ThreadPoolExecutor(options.jobs) as pool:
            caught = list(pool.map(lambda defect: is_caught(*defect, rest), made))
    for (source, number, line), by in zip(made, caught, strict=True):
        if not by:
            print(f"survives: {source}:{number + 1}: {line.strip()}", flush=True)
    counts = {by: caught.count(by) for by in ("build", "tests", "")}
    judged = len(made) - counts["build"]
    print(f"{counts['tests']} of {judged} defects caught by tests; {counts['build']} more do not compile")


if __name__ == "__main__":
    main()
