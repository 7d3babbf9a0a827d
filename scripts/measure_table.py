"""Measures the table of this machine that ships in resnext_kernels/measured/, for `auto` to choose by.

    OMP_NUM_THREADS=2 python scripts/measure_table.py

ResNeXt-50's grouped convolutions with BatchNorm and ReLU in evaluation, and forward and backward in training, where
the kernels work together and are measured together; BatchNorm and ReLU alone likewise. float32, both layouts, 1 and 8
images, on as many threads as torch has. Compiled graphs are not measured: there `auto` stays with plain PyTorch.
"""

import json
from dataclasses import replace

import torch
from rich.progress import track

import resnext_kernels as rk
from resnext_kernels import tables
from resnext_kernels.backends import cpu
from resnext_kernels.problem import ConvProblem
from resnext_kernels.testing import cases, machine, problems, timing
from resnext_kernels.testing.verify import verify

BATCHES, LAYOUTS, SECONDS = (1, 8), ("nchw", "nhwc"), 0.7
EVALUATION = ("grouped_conv2d_affine_act",)
TRAINING = ("grouped_conv2d_stats", "affine_act", "bn_act_reduce", "grouped_conv2d_affine_act_backward")
NORM = ("bn_stats", "affine_act", "bn_act_reduce", "affine_act_backward")


def image_of(problem) -> ConvProblem:
    """The problem of an op on the convolution's output."""
    h, w = problem.output_size
    return ConvProblem.parse(f"n{problem.n}_c{problem.c_out}_h{h}_w{w}_k1_p0_{problem.layout}")


def layer(problem, ops):
    """The work of `ops` as a function without arguments, by way of the public functions."""
    fill = cases.Fill(problem, integers=False)
    x, weight, vectors = fill.x(), fill.weight(), (fill.scale(), fill.vector())
    grad, training = fill.grad(), ops != EVALUATION
    leaves = [leaf.requires_grad_(training) for leaf in (x, *(() if ops == NORM else (weight,)), *vectors)]
    names = () if ops == NORM else ("stride", "padding", "dilation", "groups")
    options = dict(running_mean=fill.vector(), running_var=fill.scale(), bn_weight=vectors[0], bn_bias=vectors[1],
                   training=training, **{name: getattr(problem, name) for name in names})  # fmt: skip
    function = rk.functional.bn_act if ops == NORM else rk.functional.grouped_conv2d_bn_act

    def run():
        y = function(*leaves[: len(leaves) - 2], **options)
        return torch.autograd.grad(y, leaves, grad) if training else y

    return run


def speedup(problem, ops) -> float:
    """p20 of plain PyTorch over p80 of the kernels: a gain that is beyond the noise."""
    work = layer(problem, ops)

    def on(backend):
        def run():
            with rk.use_backend(backend):
                return work()

        return run

    times = timing.interleave({name: on(name) for name in (cpu.NAME, "aten")}, rounds=25, budget_s=SECONDS)
    return times["aten"].p20_ms / times[cpu.NAME].p80_ms


def main() -> None:
    chains = {}
    for problem in problems.resnext50(1).values():
        for n in BATCHES:
            for layout in LAYOUTS:
                sized = replace(problem, n=n, layout=layout)
                chains |= {(sized, EVALUATION): None, (sized, TRAINING): None, (image_of(sized), NORM): None}
    rows = {}
    for problem, ops in track(chains, "measuring"):
        for op in ops:
            verdict = verify(op, problem, cpu.NAME)
            if not verdict.passed:
                raise ArithmeticError(f"{op} on {problem}: {verdict}")
        measured = {"backend": cpu.NAME, "eager": speedup(problem, ops), "compiled": 0.0}
        rows |= {f"{op} {problem}": measured for op in ops}
    device = cpu.device_name()
    tables.SHIPPED.mkdir(exist_ok=True)
    path = tables.SHIPPED / tables.file_name(device)
    provenance = machine.describe() | {"command": "python scripts/measure_table.py"}
    path.write_text(json.dumps({"device": device, "provenance": provenance, "rows": rows}, indent=1) + "\n")
    print(f"{len(rows)} rows in {path}")


if __name__ == "__main__":
    main()
