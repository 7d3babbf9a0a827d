"""ConvProblem: the one description of a convolution that is validated, dispatched on, printed and benchmarked."""

import re
from dataclasses import dataclass

import torch

from ._memo import memoised
from .checks import DTYPES


def memory_format(x: torch.Tensor) -> torch.memory_format:
    """The format of an op's output: the input's. What reads as contiguous either way counts as NCHW."""
    if x.shape[1] > 1 and x.stride(1) == 1 and not x.is_contiguous():
        return torch.channels_last
    return torch.contiguous_format


def stats_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of per-channel vectors beside images of `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def output_size(size, kernel, stride, padding, dilation) -> tuple[int, int]:
    """(OH, OW) = floor((size + 2 * padding - dilation * (kernel - 1) - 1) / stride) + 1."""
    return tuple(
        (size[i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in range(2)
    )  # fmt: skip


def _by(values) -> str:
    return "x".join(map(str, values))


@dataclass(frozen=True)
class ConvProblem:
    """Sizes, dtype, memory layout ("nchw" or "nhwc") and device type of one convolution.

    An op on an image alone (BatchNorm, activation) is described as the 1x1 depthwise convolution of its size.
    """

    n: int
    c_in: int
    h: int
    w: int
    c_out: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    dtype: torch.dtype
    layout: str
    device: str

    @classmethod
    def from_tensors(cls, x, weight, stride, padding, dilation, groups) -> "ConvProblem":
        """Validated and memoised: a repeated signature costs one dictionary look-up."""
        _check_dims("input", x, "(N, C_in, H, W)")
        layout = "nhwc" if memory_format(x) is torch.channels_last else "nchw"
        return memoised(
            _of_conv, x.shape, weight.shape, tuple(stride), tuple(padding), tuple(dilation), groups,
            x.dtype, weight.dtype, x.device, weight.device, layout,
        )  # fmt: skip

    @classmethod
    def from_image(cls, z) -> "ConvProblem":
        """Of an op on the image `z` (N, C, H, W) alone; validated and memoised."""
        _check_dims("input", z, "(N, C, H, W)")
        layout = "nhwc" if memory_format(z) is torch.channels_last else "nchw"
        return memoised(_of_image, z.shape, z.dtype, z.device, layout)

    @property
    def output_size(self) -> tuple[int, int]:
        return output_size((self.h, self.w), self.kernel, self.stride, self.padding, self.dilation)

    @property
    def output_shape(self) -> tuple[int, int, int, int]:
        return (self.n, self.c_out, *self.output_size)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The 16 integers of the native ConvProblem (csrc/problem.h)."""
        return (
            self.n, self.c_in, self.h, self.w, self.c_out, *self.kernel, *self.output_size, self.groups,
            *self.stride, *self.padding, *self.dilation,
        )  # fmt: skip

    @property
    def flops(self) -> int:
        """Two per multiply-add of one forward pass."""
        oh, ow = self.output_size
        return 2 * self.n * self.c_out * oh * ow * (self.c_in // self.groups) * self.kernel[0] * self.kernel[1]

    @property
    def bytes(self) -> int:
        """Input read once, output written once."""
        oh, ow = self.output_size
        return self.n * (self.c_in * self.h * self.w + self.c_out * oh * ow) * self.dtype.itemsize

    def __str__(self):
        return (
            f"n{self.n}_c{self.c_in}_h{self.h}_w{self.w}_o{self.c_out}_k{_by(self.kernel)}_s{_by(self.stride)}"
            f"_p{_by(self.padding)}_d{_by(self.dilation)}_g{self.groups}"
            f"_{str(self.dtype).removeprefix('torch.')}_{self.layout}_{self.device}"
        )

    @classmethod
    def parse(cls, text: str) -> "ConvProblem":
        """The inverse of str(). What is left out is n1, o and g as c, w as h, k3 s1 p1 d1, float32, nchw, cpu."""
        fields = dict(n="1", k="3", s="1", p="1", d="1", dtype="float32", layout="nchw", device="cpu")
        for word in text.split("_"):
            if match := re.fullmatch(r"([nchwog])(\d+)|([kspd])(\d+(?:x\d+)?)", word):
                fields[match[1] or match[3]] = match[2] or match[4]
            elif f"torch.{word}" in map(str, DTYPES):
                fields["dtype"] = word
            elif word in ("nchw", "nhwc"):
                fields["layout"] = word
            elif word in ("cpu", "cuda"):
                fields["device"] = word
            else:
                raise ValueError(f"problem: expected words such as c128 h56 g32 s2x2 float32 nhwc cpu, got {word!r}")
        if "c" not in fields or "h" not in fields:
            raise ValueError(f"problem: expected at least channels and height, as in c128_h56_g32, got {text!r}")
        fields = {"w": fields["h"], "o": fields["c"], "g": fields["c"], **fields}
        n, c, h, w, o, g = (int(fields[key]) for key in "nchwog")
        k, s, p, d = (tuple(map(int, fields[key].split("x"))) for key in "kspd")
        k, s, p, d = (v * 2 if len(v) == 1 else v for v in (k, s, p, d))
        dtype, device = getattr(torch, fields["dtype"]), torch.device(fields["device"])
        x_shape, w_shape = (n, c, h, w), (o, c // max(g, 1), *k)
        return _of_conv(x_shape, w_shape, s, p, d, g, dtype, dtype, device, device, fields["layout"])


def _check_dims(name, tensor, dims):
    if tensor.dim() != 4:
        raise ValueError(f"{name}: expected 4 dimensions {dims}, got shape {tuple(tensor.shape)}")


def _of_image(shape, dtype, device, layout):
    n, c, h, w = shape
    if dtype not in DTYPES:
        raise TypeError(f"input: expected dtype float64, float32, bfloat16 or float16, got {dtype}")
    ones = (1, 1)
    return ConvProblem(n, c, h, w, c, ones, ones, (0, 0), ones, c, dtype, layout, device.type)


def _of_conv(x, weight, stride, padding, dilation, groups, x_dtype, w_dtype, x_device, w_device, layout):
    if len(weight) != 4:
        raise ValueError(f"weight: expected 4 dimensions (C_out, C_in/groups, kH, kW), got shape {tuple(weight)}")
    for name, values, low in (("stride", stride, 1), ("padding", padding, 0), ("dilation", dilation, 1)):
        if len(values) != 2 or min(values) < low:
            raise ValueError(f"{name}: expected two integers >= {low}, got {tuple(values)}")
    (n, c_in, h, w), (c_out, per_group, *kernel) = x, weight
    if groups < 1 or c_in % groups or c_out % groups or c_in == 0 or c_out == 0:
        raise ValueError(
            f"groups: expected a positive divisor of C_in = {c_in} and C_out = {c_out}, both not zero, got {groups}"
        )
    if per_group * groups != c_in:
        expected = (c_out, c_in // groups, *kernel)
        raise ValueError(f"weight: expected shape (C_out, C_in/groups, kH, kW) = {expected}, got {tuple(weight)}")
    if min(kernel) < 1:
        raise ValueError(f"weight: expected kernel sizes >= 1, got {tuple(weight)}")
    if x_dtype not in DTYPES:
        raise TypeError(f"input: expected dtype float64, float32, bfloat16 or float16, got {x_dtype}")
    if w_dtype != x_dtype:
        raise TypeError(f"weight: expected dtype {x_dtype} as the input's, got {w_dtype}; convert it with .to()")
    if w_device != x_device:
        raise ValueError(f"weight: expected device {x_device} as the input's, got {w_device}; move it with .to()")
    if min(output_size((h, w), kernel, stride, padding, dilation)) < 1:
        raise ValueError(
            f"input: expected H and W of at least dilation * (kernel - 1) + 1 - 2 * padding, got shape {tuple(x)}"
            f" for kernel {tuple(kernel)}, padding {tuple(padding)}, dilation {tuple(dilation)}"
        )
    return ConvProblem(n, c_in, h, w, c_out, tuple(kernel), stride, padding, dilation, groups, x_dtype, layout,
                       x_device.type)  # fmt: skip
