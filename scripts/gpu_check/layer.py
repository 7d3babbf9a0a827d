"""One layer's tensors and the ways to do each of its passes: ours, cuDNN in both layouts, torch.compile."""

import torch
import torch.nn.functional as F

import resnext_kernels as rk
from resnext_kernels.testing.cases import FORMATS
from resnext_kernels.testing.verify import call

from .ours import why_not

EPS = 1e-5
# Pass -> (tensors of the input's size and of the output's that its fewest kernels read and write, the ops of ours).
# train_forward: x and z, then z and y. backward: two kernels make dz on the fly, so that each reads z and grad_output,
# one x as well, and one writes dx; weights count as nothing. train: train_forward, bn_act_reduce and backward.
PASSES = {
    "forward": (1, 1, ("grouped_conv2d",)),
    "eval": (1, 1, ("grouped_conv2d_affine_act",)),
    "stats": (1, 1, ("grouped_conv2d_stats",)),
    "bn_stats": (0, 1, ("bn_stats",)),
    "affine_act": (0, 2, ("affine_act",)),
    "train_forward": (1, 3, ("grouped_conv2d_stats", "affine_act")),
    "dgrad": (1, 1, ("grouped_conv2d_backward",)),
    "wgrad": (1, 1, ("grouped_conv2d_backward",)),
    "bn_act_reduce": (0, 2, ("bn_act_reduce",)),
    "backward": (2, 4, ("grouped_conv2d_affine_act_backward",)),
    "train": (3, 9, ("grouped_conv2d_stats", "affine_act")),
}


class Layer:
    """Of a channels-last problem; `sets` independent sets of images, channels last ("nhwc") and not ("nchw")."""

    def __init__(self, problem, sets: int):
        self.problem, p = problem, problem
        make = {"dtype": p.dtype, "device": p.device}
        torch.manual_seed(0)
        weight = torch.randn(p.c_out, p.c_in // p.groups, *p.kernel, **make) * (2 * p.groups / p.c_in / 9) ** 0.5
        self.weight = {layout: weight.contiguous(memory_format=memory) for layout, memory in FORMATS.items()}
        # Values of each set of their own: on zeros, or the same, a GPU draws less power and runs faster.
        self.x = self._images(sets, (p.n, p.c_in, p.h, p.w), make)
        self.grad = self._images(sets, p.output_shape, make)
        self.z = [image.flip(0) for image in self.grad["nhwc"]]
        self.vectors = [torch.rand(p.c_out, device=p.device) + 0.5 for _ in range(4)]
        self.conv = {name: getattr(p, name) for name in ("stride", "padding", "dilation", "groups")}
        self.listed = [list(p.stride), list(p.padding), list(p.dilation), p.groups]

    def _images(self, sets, shape, make):
        images = [torch.randn(shape, **make) for _ in range(sets)]
        return {layout: [image.contiguous(memory_format=memory) for image in images]
                for layout, memory in FORMATS.items()}  # fmt: skip

    @property
    def sets(self) -> int:
        return len(self.x["nhwc"])

    def bytes(self, pass_name) -> int:
        p, (inputs, outputs, _) = self.problem, PASSES[pass_name]
        oh, ow = p.output_size
        return p.n * (inputs * p.c_in * p.h * p.w + outputs * p.c_out * oh * ow) * p.dtype.itemsize

    def why_not(self, pass_name, name) -> str | None:
        """None if the backend `name` has the pass; a backward of another backend may finish `train`."""
        reasons = {op: why_not(op, self.problem, name) for op in PASSES[pass_name][2]}
        return "; ".join(f"{op}: {reason}" for op, reason in reasons.items() if reason) or None

    def ours(self, pass_name, name):
        """The pass as a function of the set's number."""
        x, grad, z, weight = self.x["nhwc"], self.grad["nhwc"], self.z, self.weight["nhwc"]
        a, b, c, d = self.vectors
        direct = {
            "forward": lambda i: ("grouped_conv2d", (x[i], weight, None, *self.listed)),
            "eval": lambda i: ("grouped_conv2d_affine_act", (x[i], weight, a, b, *self.listed, "relu")),
            "stats": lambda i: ("grouped_conv2d_stats", (x[i], weight, *self.listed)),
            "bn_stats": lambda i: ("bn_stats", (z[i],)),
            "affine_act": lambda i: ("affine_act", (z[i], a, b, None, "relu")),
            "bn_act_reduce": lambda i: ("bn_act_reduce", (grad[i], z[i], a, b, c, d, None, "relu")),
            "backward": lambda i: (
                "grouped_conv2d_affine_act_backward",
                (grad[i], z[i], a, b, c, d, a, x[i], weight, *self.listed, "relu", [True, True]),
            ),
            "dgrad": lambda i: ("grouped_conv2d_backward", (grad[i], x[i], weight, *self.listed, [True, False, False])),
            "wgrad": lambda i: ("grouped_conv2d_backward", (grad[i], x[i], weight, *self.listed, [False, True, False])),
        }
        if pass_name in direct:
            return lambda i: call(*direct[pass_name](i), name)
        return self.public(pass_name, self.ours_bn_act, "nhwc", name)

    def ours_bn_act(self, x, weight, bn_weight, bn_bias, training):
        return rk.functional.grouped_conv2d_bn_act(
            x, weight, running_mean=self.vectors[2], running_var=self.vectors[3], bn_weight=bn_weight,
            bn_bias=bn_bias, training=training, momentum=0.0, eps=EPS, **self.conv,
        )  # fmt: skip

    def eager_bn_act(self, x, weight, bn_weight, bn_bias, training):
        z = F.conv2d(x, weight, None, **self.conv)
        return F.batch_norm(z, self.vectors[2], self.vectors[3], bn_weight, bn_bias, training, 0.0, EPS).relu_()

    def public(self, pass_name, function, layout, name="aten"):
        """Convolution, BatchNorm and ReLU by `function`; eval, the forward of training, or all of it."""
        weight, affine, xs, grads = self.weight[layout], self.vectors[:2], self.x[layout], self.grad[layout]
        # What a backend lacks of the backward is PyTorch's, as for a user.
        backends = name if name in ("aten", "reference") else f"{name},aten"
        if pass_name != "train":

            @torch.no_grad()
            def run(i):
                with rk.use_backend(backends):
                    return function(xs[i], weight, *affine, pass_name == "train_forward")

            return run
        leaves = [each.detach().requires_grad_() for each in (weight, *affine)]
        inputs = [x.detach().requires_grad_() for x in xs]

        def train(i):
            with rk.use_backend(backends):
                y = function(inputs[i], *leaves, True)
                return torch.autograd.grad(y, (inputs[i], *leaves), grads[i])

        return train

    def peers(self, pass_name) -> dict:
        """Name -> function of the set's number: cuDNN's convolution alone, or eager PyTorch."""
        if pass_name in ("forward", "dgrad", "wgrad"):
            return {f"cudnn {layout}": self._cudnn(pass_name, layout) for layout in FORMATS}
        if pass_name in ("eval", "train_forward", "train"):
            return {f"eager {layout}": self.public(pass_name, self.eager_bn_act, layout) for layout in FORMATS}
        return {}

    def _cudnn(self, pass_name, layout):
        x, grad, weight = self.x[layout], self.grad[layout], self.weight[layout]
        p = self.problem
        if pass_name == "forward":
            return lambda i: torch.ops.aten.convolution(
                x[i], weight, None, p.stride, p.padding, p.dilation, False, [0, 0], p.groups
            )  # fmt: skip
        mask = [pass_name == "dgrad", pass_name == "wgrad", False]
        return lambda i: torch.ops.aten.convolution_backward(
            grad[i], x[i], weight, None, p.stride, p.padding, p.dilation, False, [0, 0], p.groups, mask
        )[mask.index(True)]

    def compiled(self, pass_name, layout, compiler):
        return self.public(pass_name, torch.compile(self.eager_bn_act, dynamic=False, backend=compiler), layout)
