"""How much of the CUDA kernels the tests notice: small defects, one at a time, under emulation.

python scripts/mutate_cuda.py [--only SUBJECT] [--lines REGEX] [--every N] [--offset K] prints each defect that
survives and, for each subject, how many were caught. A defect costs seconds: --every takes each N-th one, from the
K-th on. Defects are mechanical: a call such as a barrier, wait, commit or store left out, a bound or mask always or
never met, a comparison or a sum turned round, a number or an index off by one, two fragments exchanged. Those that
compile to the same code are no defects.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from mutation import import_tests, judge, options, passes

ROOT = Path(__file__).parents[1]
CUDA = ROOT / "csrc/cuda"
FORWARD, DGRAD, WGRAD, BACKWARD, BACKWARD_FLOAT, IMAGES, IMAGES_BACKWARD, PLAN = (
    f"tests/test_cuda_{name}.py"
    for name in ("forward", "dgrad", "wgrad", "backward", "backward_float", "images", "images_backward", "plan")
)
FLAGS = ["-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-ftrivial-auto-var-init=pattern", "-w",
         "-ffp-contract=off", "-fsanitize=bounds", "-fno-sanitize-recover=bounds", "-DRESNEXT_KERNELS_EMULATION",
         "-DRK_MODULE=_emulated"]  # fmt: skip


@dataclass(frozen=True)
class Subject:
    """Sources whose lines become defects, what is built anew where it includes them, and the tests in their order."""

    sources: tuple[str, ...]
    units: tuple[str, ...]
    tests: tuple[tuple[str, str], ...]  # (files, what -k takes)


HALF = "(test_exact or test_gates or test_nothing) and not bfloat16 and not float32"
SUBJECTS = {
    # One type alone: the half of the kernels that are built find what the other would.
    "tensor": Subject(
        ("grouped_conv2d_rows.cuh", "grouped_conv2d_block.cuh", "grouped_conv2d_warp.cuh",
         "grouped_conv2d_fwd_tensor.cuh", "grouped_conv2d_fwd_tensor.cu", "grouped_conv2d_fwd_launch.cuh",
         "grouped_conv2d_prepack.cuh", "grouped_conv2d_prepack.cu"),
        ("grouped_conv2d_fwd_half.cu", "grouped_conv2d_fwd_tensor.cu", "grouped_conv2d_prepack.cu"),
        ((FORWARD, HALF),),
    ),
    "dgrad": Subject(
        ("grouped_conv2d_dgrad_strided.cuh", "grouped_conv2d_input.cuh", "grouped_conv2d_dgrad_tensor.cu"),
        ("grouped_conv2d_dgrad_half.cu", "grouped_conv2d_fwd_half.cu", "grouped_conv2d_dgrad_tensor.cu"),
        ((DGRAD, "not bfloat16"), (BACKWARD, "test_gates and float16 and not bfloat16")),
    ),
    "wgrad": Subject(
        ("grouped_conv2d_wgrad_block.cuh", "grouped_conv2d_wgrad_tensor.cuh", "grouped_conv2d_wgrad_launch.cuh",
         "grouped_conv2d_wgrad_tensor.cu", "grouped_conv2d_wgrad_plan.cpp", "grouped_conv2d_wgrad_plan.h"),
        ("grouped_conv2d_wgrad_half.cu", "grouped_conv2d_wgrad_tensor.cu", "grouped_conv2d_wgrad_plan.cpp"),
        ((WGRAD, "not bfloat16"),),
    ),
    "tensor_plan": Subject(
        ("grouped_conv2d_plan.cpp", "grouped_conv2d_plan.h"),
        ("grouped_conv2d_plan.cpp", "grouped_conv2d_fwd_half.cu", "grouped_conv2d_fwd_tensor.cu",
         "grouped_conv2d_dgrad_half.cu", "grouped_conv2d_dgrad_tensor.cu", "grouped_conv2d_prepack.cu"),
        ((PLAN, ""), (FORWARD, "reason"), (DGRAD, "reason"), (FORWARD, HALF), (DGRAD, "not bfloat16")),
    ),
    "float32": Subject(
        ("grouped_conv2d_fwd_float.cuh", "grouped_conv2d_fwd_float_block.cuh", "grouped_conv2d_fwd_float_plan.cpp",
         "grouped_conv2d_fwd_float_plan.h", "grouped_conv2d_fwd_float.cu", "grouped_conv2d_fwd.cu"),
        ("grouped_conv2d_fwd_float.cu", "grouped_conv2d_fwd_float_plan.cpp", "grouped_conv2d_fwd.cu"),
        ((FORWARD, "test_exact and float32"), (FORWARD, "test_gates and float32")),
    ),
    "bn_stats": Subject(("bn_stats.cuh", "bn_stats.cu"), ("bn_stats.cu",), ((IMAGES, ""),)),
    "affine_act": Subject(("affine_act.cuh", "affine_act.cu", "element.h"), ("affine_act.cu",), ((IMAGES, ""),)),
    "backward_float": Subject(
        ("grouped_conv2d_dgrad_float.cuh", "grouped_conv2d_dgrad_float.cu", "grouped_conv2d_dgrad_float_plan.cpp",
         "grouped_conv2d_wgrad_float.cuh", "grouped_conv2d_wgrad_float.cu", "grouped_conv2d_wgrad_float_plan.cpp",
         "float_vector.cuh", "grouped_conv2d_wgrad_merge.cu"),
        ("grouped_conv2d_dgrad_float.cu", "grouped_conv2d_dgrad_float_plan.cpp", "grouped_conv2d_wgrad_float.cu",
         "grouped_conv2d_wgrad_float_plan.cpp", "grouped_conv2d_wgrad_merge.cu"),
        ((BACKWARD_FLOAT, ""),),
    ),
    "bn_act_reduce": Subject(
        ("bn_act_reduce.cuh", "bn_act_reduce.cu", "compensated_sum.cuh"), ("bn_act_reduce.cu",),
        ((IMAGES_BACKWARD, ""),),
    ),
    "affine_act_backward": Subject(
        ("affine_act_backward.cuh", "affine_act_backward.cu", "activation.cuh", "channel_walk.cuh"),
        ("affine_act_backward.cu",), ((IMAGES_BACKWARD, ""),),
    ),
    "channel_stats": Subject(
        ("channel_stats.cuh", "channel_stats.cu"),
        ("bn_stats.cu", "channel_stats.cu", "grouped_conv2d_fwd_float.cu"),
        ((IMAGES, ""), (FORWARD, "test_gates and float32")),
    ),
    "images_plan": Subject(
        ("images_plan.h", "plan_arithmetic.h"), ("affine_act.cu", "bn_stats.cu"), ((IMAGES, ""),)
    ),
}  # fmt: skip

TURNED = {" < ": " <= ", " <= ": " < ", " >= ": " > ", " > ": " >= ", " == ": " != ", " != ": " == ", " && ": " || ",
          " || ": " && ", " + ": " - ", " - ": " + ", " % ": " / ", " / ": " % ", " += ": " = ",
          " ? ": " || true ? ", "? ": "&& false ? "}  # fmt: skip
EXCHANGED = {"w[0], w[1]": "w[1], w[0]", "w[2 * n], w[2 * n + 1]": "w[2 * n + 1], w[2 * n]",
             "last[2 * n], last[2 * n + 1]": "last[2 * n + 1], last[2 * n]", "sum[0], n, 0": "sum[1], n, 0",
             "words[2 * n + half]": "words[2 * half + n]", "low | high": "high | low", ".mean": ".m2",
             ".scale": ".shift"}  # fmt: skip
# A longer array is no defect.
ARRAYS = re.compile(r"\s*[\w:<>]+ \w+\[[^=(]*;")
NO_CODE = re.compile(r"\s*(#|//|template|static_assert|using|namespace|static constexpr|struct)|\s*$")
CALL = re.compile(r"^\s*[\w.:]+(<[^;]*>)?\(.*\);$")
LEAVE = re.compile(r"^\s*(if \(.*\) )?(return|continue|break);$")


def changes(code: str):
    """The line as it becomes with each defect."""
    if CALL.match(code) or LEAVE.match(code):
        yield re.sub(r"\S.*", ";", code, count=1)
    for old, new in (TURNED | EXCHANGED).items():
        for match in re.finditer(re.escape(old), code):
            yield code[: match.start()] + new + code[match.end() :]
    for match in re.finditer(r"(?<![\w.<])\d+(?![\w.>])", code):
        yield code[: match.start()] + str(int(match[0]) + 1) + code[match.end() :]
    for match in re.finditer(r"(?<=\w\[)(?!k[A-Z])[a-z]\w*(?=\])", code):
        yield f"{code[: match.end()]} + 1{code[match.end() :]}"
    for match in re.finditer(r"(?<=\bif \()[^()]*(?:\([^()]*\)[^()]*)*(?=\))", code):
        for always in ("true", "false"):
            yield code[: match.start()] + always + code[match.end() :]


def defects(source: str, lines: str):
    """(source, line number, the line as it becomes) of every defect of a source's lines that match."""
    for number, line in enumerate((CUDA / source).read_text().splitlines()):
        if re.search(lines, line) and not NO_CODE.match(line) and not ARRAYS.match(line):
            for changed in dict.fromkeys(changes(line.split("//")[0].rstrip())):
                yield source, number, changed


def compile_unit(unit: Path, target: Path, *options) -> bool:
    includes = [f"-I{path}" for path in (ROOT / "csrc", CUDA, ROOT / "tests/cuda")]
    # Relative names: an object must not tell where it was compiled.
    command = ["g++", *FLAGS, *includes, *options, "-x", "c++", "-c", unit.name, "-o", target]
    return subprocess.run(command, cwd=unit.parent, capture_output=True).returncode == 0


def link(module: Path, objects) -> None:
    subprocess.run(["g++", "-shared", "-fsanitize=bounds", "-o", module, *objects], check=True)


class Baseline:
    """All objects without a defect, and what each was made of."""

    def __init__(self, folder: Path, jobs: int):
        command = [sys.executable, "-m", "pybind11", "--includes"]
        pybind11 = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        self.folder = folder
        self.units = [path for path in CUDA.iterdir() if path.suffix in (".cu", ".cpp")]
        with ThreadPoolExecutor(jobs) as pool:
            done = list(
                pool.map(lambda unit: compile_unit(unit, self.object(unit.name), *pybind11, "-MMD"), self.units)
            )
        assert all(done), "the kernels do not compile"
        link(folder / "_emulated.so", [self.object(unit.name) for unit in self.units])

    def object(self, unit: str) -> Path:
        return self.folder / f"{unit}.o"

    def includes(self, unit: str, source: str) -> bool:
        made_of = self.object(unit).with_suffix(".d").read_text().split()
        return source in (Path(word).name for word in made_of)

    def others(self, units) -> list[Path]:
        return [self.object(unit.name) for unit in self.units if unit.name not in units]


def run_tests(module: Path, file: str, keyword: str) -> bool:
    return passes(lambda: os.environ.update(RESNEXT_KERNELS_EMULATED=str(module)), file, keyword)


_baseline = None  # in every worker


def outcome(name: str, source: str, number: int, line: str) -> str:
    baseline, subject = _baseline, SUBJECTS[name]
    units = [unit for unit in subject.units if baseline.includes(unit, source)]
    with tempfile.TemporaryDirectory() as name:
        # Headers find each other beside themselves: all of them are there.
        folder = Path(shutil.copytree(CUDA, Path(name) / "cuda"))
        lines = (folder / source).read_text().splitlines()
        lines[number] = line
        (folder / source).write_text("\n".join(lines) + "\n")
        objects = [folder / f"{unit}.o" for unit in units]
        if not all(compile_unit(folder / unit, target) for unit, target in zip(units, objects, strict=True)):
            return "build"
        if all(
            each.read_bytes() == baseline.object(unit).read_bytes() for each, unit in zip(objects, units, strict=True)
        ):
            return "same"
        link(folder / "_emulated.so", [*objects, *baseline.others(units)])
        passed = all(run_tests(folder / "_emulated.so", *tests) for tests in subject.tests)
        return "nothing" if passed else "tests"


def main() -> None:
    global _baseline
    chosen = options(__doc__, SUBJECTS)
    os.chdir(ROOT)
    import_tests({file for subject in SUBJECTS.values() for file, _ in subject.tests})
    with tempfile.TemporaryDirectory() as folder:
        _baseline = Baseline(Path(folder), chosen.jobs)
        for name in [chosen.only] if chosen.only else SUBJECTS:
            tests = SUBJECTS[name].tests
            assert all(run_tests(_baseline.folder / "_emulated.so", *each) for each in tests), "fails as it is"
            made = [each for source in SUBJECTS[name].sources for each in defects(source, chosen.lines)]
            judge(name, made[chosen.offset :: chosen.every], outcome, chosen.jobs)


if __name__ == "__main__":
    main()
