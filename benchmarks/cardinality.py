"""Suite `cardinality`: grouped 3x3 convolution + BatchNorm + ReLU over the paper's settings at each ResNeXt stage."""

from dataclasses import replace

import torch
import torch.nn.functional as F

import resnext_kernels as rk
from resnext_kernels import backends
from resnext_kernels.batch_norm import fold
from resnext_kernels.testing import cases, problems, verify

EPS = 1e-5
PASSES = {
    "eval": ("grouped_conv2d_affine_act",),
    "train": ("grouped_conv2d_stats", "affine_act", "bn_act_reduce", "grouped_conv2d_affine_act_backward"),
}


def select(options) -> dict:
    """Row name -> problem (NCHW; every row is measured in both layouts)."""
    rows = problems.cardinality(options.batch, dtype=options.dtype, device=options.device)
    if options.quick:
        rows = {name: rows[name] for name in ("32x4d conv2", "32x4d conv3")}
    return {name: p for name, p in rows.items() if options.only in name}


class Layer:
    """One problem's tensors and the functions that compete on it."""

    def __init__(self, problem):
        self.problem = problem
        fill = cases.Fill(problem, integers=False)
        self.weight = fill.weight() * (2 / fill.weight()[0].numel()) ** 0.5
        self.bn = fill.scale(), fill.vector()
        self.running = fill.vector() * 0.1, fill.scale()
        self.x = {layout: fill.x().contiguous(memory_format=memory) for layout, memory in cases.FORMATS.items()}
        self.grad = fill.grad()
        names = ("stride", "padding", "dilation", "groups")
        self.conv = {name: getattr(problem, name) for name in names}

    def eager(self, x, weight, bn_weight, bn_bias, training):
        z = F.conv2d(x, weight, None, **self.conv)
        return F.batch_norm(z, *self.running, bn_weight, bn_bias, training, 0.0, EPS).relu_()

    def ours(self, x, weight, bn_weight, bn_bias, training):
        return rk.functional.grouped_conv2d_bn_act(
            x, weight, running_mean=self.running[0], running_var=self.running[1], bn_weight=bn_weight,
            bn_bias=bn_bias, training=training, momentum=0.0, eps=EPS, **self.conv,
        )  # fmt: skip

    def evaluate(self, function, layout):
        x, weight = self.x[layout], self.weight.contiguous(memory_format=cases.FORMATS[layout])

        @torch.inference_mode()
        def run():
            return function(x, weight, *self.bn, False)

        return run

    def folded(self, layout):
        _, scale, shift = fold(*self.running, *self.bn, EPS)
        weight = (self.weight * scale.view(-1, 1, 1, 1)).to(self.weight.dtype)
        x, weight = self.x[layout], weight.contiguous(memory_format=cases.FORMATS[layout])
        shift = shift.to(weight.dtype)

        @torch.inference_mode()
        def run():
            return F.conv2d(x, weight, shift, **self.conv).relu_()

        return run

    def train(self, function, layout):
        memory = cases.FORMATS[layout]
        leaves = [self.x[layout], self.weight.contiguous(memory_format=memory), *self.bn]
        leaves = [leaf.detach().requires_grad_() for leaf in leaves]
        grad = self.grad.contiguous(memory_format=memory)

        def run():
            return torch.autograd.grad(function(*leaves, True), leaves, grad)

        return run

    def competitors(self, pass_name, with_compile):
        """(layout -> ours, name -> baseline), each a function without arguments."""
        timed = self.evaluate if pass_name == "eval" else self.train
        names = {"nchw": "nchw", "nhwc": "channels_last"}
        ours = {layout: timed(self.ours, layout) for layout in names}
        baselines = {f"eager {name}": timed(self.eager, layout) for layout, name in names.items()}
        if pass_name == "eval":
            baselines |= {f"folded {name}": self.folded(layout) for layout, name in names.items()}
        if with_compile:
            # All layers share this code, which dynamo compiles only a few times: beyond that it would run eagerly.
            torch.compiler.reset()
            compiled = torch.compile(self.eager, dynamic=False)
            baselines |= {f"compile {name}": timed(compiled, layout) for layout, name in names.items()}
        return ours, baselines


def check(problem, pass_name, requested) -> verify.Verdict:
    """The worst verdict over the pass's ops on a batch of at most 2; plain PyTorch is reported, kernels must pass."""
    small = replace(problem, n=min(problem.n, 2))
    worst = verify.Verdict(0.0, 0.0, "exact")
    for op in PASSES[pass_name]:
        verdict = verify.verify(op, small, requested)
        name, _ = backends.explain(op, small, requested)
        if not verdict.passed and name != "aten":
            raise ArithmeticError(f"{op} on {small}: {verdict.ratio:.3g} times the allowed error at {verdict.where}")
        worst.max_error = max(worst.max_error, verdict.max_error)
        worst.ratio = max(worst.ratio, verdict.ratio)
    return worst


def ran(function) -> str:
    """The backends that really ran in one call of `function`."""
    with backends.record() as record:
        function()
    return "+".join(sorted({name for _, _, name in record}))


def work(problem, pass_name) -> tuple[int, int]:
    """(FLOP, bytes) of a pass: forward i + o; training adds dgrad and wgrad, and moves 2 i + 6 o more.

    i and o are the input's and the output's bytes; of training, stats and normalise move i + 3 o, backward 2 i + 6 o.
    """
    o = problem.n * problem.c_out * problem.output_size[0] * problem.output_size[1] * problem.dtype.itemsize
    i = problem.bytes - o
    return (problem.flops, i + o) if pass_name == "eval" else (3 * problem.flops, 3 * i + 9 * o)
