"""One layer, convolution + BatchNorm + ReLU, done by the kernels and in every way PyTorch has for it."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

import resnext_kernels as rk
from resnext_kernels import backends
from resnext_kernels.batch_norm import fold
from resnext_kernels.testing import cases, verify

EPS = 1e-5
LAYOUTS = {"nchw": "nchw", "nhwc": "channels_last"}  # ours -> PyTorch's name
PASSES = {
    "eval": ("grouped_conv2d_affine_act",),
    "train": ("grouped_conv2d_stats", "affine_act", "bn_act_reduce", "grouped_conv2d_affine_act_backward"),
}


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

    def train(self, function, layout):
        memory = cases.FORMATS[layout]
        leaves = [self.x[layout], self.weight.contiguous(memory_format=memory), *self.bn]
        leaves = [leaf.detach().requires_grad_() for leaf in leaves]
        grad = self.grad.contiguous(memory_format=memory)

        def run():
            return torch.autograd.grad(function(*leaves, True), leaves, grad)

        return run

    def folded(self, layout):
        *_, scale, shift = fold(*self.running, *self.bn, EPS)
        weight = (self.weight * scale.view(-1, 1, 1, 1)).to(self.weight.dtype)
        x, weight = self.x[layout], weight.contiguous(memory_format=cases.FORMATS[layout])
        shift = shift.to(weight.dtype)

        @torch.inference_mode()
        def run():
            return F.conv2d(x, weight, shift, **self.conv).relu_()

        return run

    def inductor(self, layout):
        """Compiled with weights and statistics frozen into the code; it wants a module, and no inference mode."""
        p, x = self.problem, self.x[layout]
        conv = nn.Conv2d(p.c_in, p.c_out, p.kernel, bias=False, **self.conv)
        bn = nn.BatchNorm2d(p.c_out, eps=EPS)
        conv.weight.data, bn.weight.data, bn.bias.data = self.weight, *self.bn
        bn.running_mean, bn.running_var = self.running
        module = nn.Sequential(conv, bn, nn.ReLU(inplace=True)).to(memory_format=cases.FORMATS[layout]).eval()
        compiled = torch.no_grad()(torch.compile(module, dynamic=False))
        with torch._inductor.config.patch(freezing=True):
            compiled(x)
        return lambda: compiled(x)

    def contender(self, way, pass_name, layout):
        """The pass done in one way, as a function without arguments."""
        if way in ("folded", "inductor"):
            return getattr(self, way)(layout)
        functions = {"ours": self.ours, "eager": self.eager}
        function = torch.compile(self.eager, dynamic=False) if way == "compile" else functions[way]
        return (self.evaluate if pass_name == "eval" else self.train)(function, layout)

    def competitors(self, pass_name, ways):
        """(layout -> ours, "way layout" -> baseline), each a function without arguments."""
        if {"compile", "inductor"}.intersection(ways):
            # All layers share this code, which dynamo compiles only a few times: beyond that it would run eagerly.
            torch.compiler.reset()
        ours = {layout: self.contender("ours", pass_name, layout) for layout in LAYOUTS}
        baselines = {
            f"{way} {name}": self.contender(way, pass_name, layout)
            for way in ways
            for layout, name in LAYOUTS.items()
        }  # fmt: skip
        return ours, baselines


def check(problem, pass_name, requested) -> verify.Verdict:
    """The worst verdict over the pass's ops on a batch of at most 2; plain PyTorch is reported, kernels must pass."""
    small = replace(problem, n=min(problem.n, 2))
    worst = verify.Verdict(0.0, 0.0, "exact")
    for op in PASSES[pass_name]:
        with backends.record() as record:
            verdict = verify.verify(op, small, requested)
        if not verdict.passed and any(name != "aten" for _, _, name in record):
            raise ArithmeticError(f"{op} on {small}: {verdict.ratio:.3g} times the allowed error at {verdict.where}")
        worst.max_error = max(worst.max_error, verdict.max_error)
        worst.ratio = max(worst.ratio, verdict.ratio)
    return worst


def ran(function) -> str:
    """The backends that really ran in one call of `function`."""
    with backends.record() as record:
        function()
    return "+".join(sorted({name for _, _, name in record}))
