"""What right numbers do not show: compute-sanitizer, bits that stay the same, graphs, streams, more than 2^31 bytes."""

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch

from resnext_kernels.problem import ConvProblem
from resnext_kernels.testing import problems, verify
from resnext_kernels.testing.cases import FORMATS
from resnext_kernels.testing.verify import call

from .ours import claimed, names
from .small_calls import arguments

TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
FOUND = 86  # the tool's exit status where it found something
RUNS = 50
DTYPES = (torch.bfloat16, torch.float32)


def find_sanitizer() -> str | None:
    """In PATH, /usr/local/cuda/bin or the PyPI package nvidia-cuda-sanitizer-api."""
    nvidia = importlib.util.find_spec("nvidia")
    folders = [Path(folder, "cu13", "bin") for folder in nvidia.submodule_search_locations] if nvidia else []
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/cuda/bin", *map(str, folders)])
    return shutil.which("compute-sanitizer", path=path)


class Sanitizers:
    """All tools at once, each with a process of its own, while other items run."""

    def __init__(self, stage, folder: str):
        self.stage, self.running = stage, {}
        tool = find_sanitizer()
        if stage.dry:
            self._start("none", [], folder, "--dry")  # the program that the tools would watch
        elif tool is None:
            for name in TOOLS:
                stage.skip(name, "no compute-sanitizer in PATH, /usr/local/cuda/bin or nvidia-cuda-sanitizer-api")
        else:
            for name in TOOLS:
                options = ["--tool", name, "--error-exitcode", str(FOUND), "--print-limit", "20"]
                self._start(name, [tool, *options, "--report-api-errors", "no"], folder)

    def _start(self, name, command, folder, *arguments):
        # Each tensor is an allocation of its own, whose bounds are known to the tool.
        environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        log = Path(folder, name)
        program = [*command, sys.executable, "-m", "gpu_check.small_calls", *arguments]
        with log.open("w") as file:
            self.running[name] = log, subprocess.Popen(program, stdout=file, stderr=file, env=environment)

    def finish(self, name) -> dict:
        log, process = self.running[name]
        status = process.wait(timeout=max(self.stage.seconds_left() - 2, 1))
        printed = log.read_text(errors="replace")
        print(printed, flush=True)
        calls = [int(line.split()[1]) for line in printed.splitlines() if line.startswith("calls: ")]
        # Warnings leave the status 0, and so may a tool that could not start.
        clean = self.stage.dry or "SUMMARY: 0 " in printed
        if status or not calls or not clean:
            raise RuntimeError(f"{printed[-6000:]}\n{name} ended with status {status} after {calls or 'no'} calls")
        return {"check": "sanitizer", "tool": name, "calls": calls[0]}

    def stop(self):
        for _, process in self.running.values():
            if process.poll() is None:
                process.kill()


def _equal(results, expected) -> bool:
    return all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


class Calls:
    """One op on one problem, and again with other values."""

    def __init__(self, op: str, problem: ConvProblem, name: str):
        self.op, self.name, self.device = op, name, problem.device
        self.args = arguments(op, problem, problem.device)
        self.tensors = [each for each in self.args if isinstance(each, torch.Tensor)]

    def __call__(self):
        return call(self.op, self.args, self.name)

    def change(self):
        """Other values in the same memory."""
        for tensor in self.tensors:
            tensor.copy_(-0.75 * tensor.flip(0))

    def bits(self) -> dict:
        """The same in every run, whatever the memory held before and whatever else the GPU does."""
        expected = self()
        gpu = self.device == "cuda"
        side = torch.cuda.Stream() if gpu else None
        for run in range(RUNS if gpu else 3):
            with torch.cuda.stream(side) if gpu else nullcontext():
                torch.full((1 << (16 + run % 8),), float(run), device=self.device).mul_(2)
            if not _equal(self(), expected):
                raise ArithmeticError(f"{self.op}: other bits in run {run}")
        return {"check": "bits", "backend": self.name, "op": self.op, "runs": run + 1}

    def graph(self) -> dict:
        """Captured, then replayed on other values."""
        self()
        if self.device == "cuda":
            graph = torch.cuda.CUDAGraph()
            torch.cuda.synchronize()
            with torch.cuda.graph(graph):
                results = self()
            replay = graph.replay
        else:
            results = self()

            def replay():  # no CPU has graphs
                for result, again in zip(results, self(), strict=True):
                    result.copy_(again)

        for _ in range(3):
            self.change()
            for result in results:
                result.fill_(float("nan"))
            replay()
            if not _equal(results, self()):
                raise ArithmeticError(f"{self.op}: a replayed graph gives other bits than a call")
        return {"check": "graph", "backend": self.name, "op": self.op}

    def stream(self) -> dict:
        """On a stream that is late with the values, while the default one is idle."""
        if self.device == "cuda":
            torch.cuda.synchronize()
            side = torch.cuda.Stream()
            with torch.cuda.stream(side):
                torch.cuda._sleep(20_000_000)
                self.change()
                results = self()
            side.synchronize()
        else:
            self.change()
            results = self()
        if not _equal(results, self()):
            raise ArithmeticError(f"{self.op}: other bits on a stream of its own")
        return {"check": "stream", "backend": self.name, "op": self.op}


def beyond(op: str, problem: ConvProblem, name: str) -> dict:
    """A tensor of more bytes, or elements, than an int counts: its first, middle and last images against float64."""
    device, layout = problem.device, FORMATS["nhwc"]
    torch.manual_seed(0)
    shape = (problem.n, problem.c_in, problem.h, problem.w)
    x = torch.empty(shape, dtype=problem.dtype, device=device, memory_format=layout).normal_()
    args = arguments(op, replace(problem, n=1), device, optional=False)
    results = call(op, (x, *args[1:]), name)
    ratio = 0.0
    for first in (0, problem.n // 2, problem.n - 2):
        part = slice(first, first + 2)
        small = (x[part].contiguous(memory_format=layout), *args[1:])
        verdict = verify.judge(op, small, (results[0][part].contiguous(memory_format=layout),))
        ratio = max(ratio, verdict.ratio)
        if not verdict.passed:
            raise ArithmeticError(f"{op}: images {first}, {first + 1} of {problem.n}: {verdict}")
    about = {"check": "beyond 2^31", "backend": name, "op": op}
    return about | {"elements": x.numel(), "bytes": x.nbytes, "ratio": ratio}


def plan(stage, name: str) -> dict:
    """The items of one backend."""
    small = problems.conv3x3(2, 16, 5, 4, layout="nhwc", device=stage.device)
    middle = small if stage.dry else problems.conv3x3(16, 256, 28, 32, layout="nhwc", device=stage.device)
    items = {}
    for dtype in DTYPES:
        problem = replace(middle, dtype=dtype)
        for op in claimed(problem, name):
            for check in ("bits", "graph", "stream"):

                def run(op=op, problem=problem, check=check):
                    return getattr(Calls(op, problem, name), check)()

                items[f"{name} {check} {op} {problem}"] = run
    # 5376 images have more than 2^31 elements, 2700 more than 2^31 bytes.
    for n in (4,) if stage.dry else (2700, 5376):
        of = (16, 5, 4) if stage.dry else (128, 56, 32)
        problem = problems.conv3x3(n, *of, dtype=torch.bfloat16, layout="nhwc", device=stage.device)
        needed = 1.5 * problem.bytes
        if not stage.dry and torch.cuda.mem_get_info()[0] < needed:
            stage.skip(f"{name} beyond 2^31, {n} images", f"needs {needed / 2**30:.0f} GiB of free memory")
            continue
        for op in ("grouped_conv2d", "affine_act"):
            if op in claimed(problem, name):
                items[f"{name} beyond 2^31 {op} {problem}"] = lambda op=op, problem=problem: beyond(op, problem, name)
    if not items:
        stage.fail("hazards", f"{name} claims no op")
    return items


def main(stage) -> str:
    with tempfile.TemporaryDirectory() as folder:
        sanitizers = Sanitizers(stage, folder)
        try:
            for name in names(stage.dry):
                stage.each(plan(stage, name), needs_s=5)
            stage.each({tool: lambda tool=tool: sanitizers.finish(tool) for tool in sanitizers.running})
        finally:
            sanitizers.stop()
    counts = {check: sum(row["check"] == check for row in stage.rows)
              for check in ("bits", "graph", "stream", "beyond 2^31", "sanitizer")}  # fmt: skip
    return ", ".join(f"{check} {count}" for check, count in counts.items())
