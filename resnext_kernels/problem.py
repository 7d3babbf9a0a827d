"""ConvProblem: the one description of a convolution that is validated, dispatched on, printed and benchmarked."""

from dataclasses import dataclass
from functools import lru_cache

import torch

ACTIVATIONS = ("identity", "relu", "silu")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def memory_format(x: torch.Tensor) -> torch.memory_format:
    """The format of an op's output: the input's. What reads as contiguous either way counts as NCHW."""
    if x.shape[1] > 1 and x.stride(1) == 1 and not x.is_contiguous():
        return torch.channels_last
    return torch.contiguous_format


def pair(name: str, value) -> tuple[int, int]:
    values = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(values) != 2:
        raise ValueError(f"{name}: expected an int or a pair of ints, got {value!r}")
    return values


def check_activation(activation: str) -> None:
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation: expected one of {', '.join(ACTIVATIONS)}, got {activation!r}")


def check_vector(name: str, vector: torch.Tensor, channels: int, dtype: torch.dtype | None, x: torch.Tensor) -> None:
    if tuple(vector.shape) != (channels,):
        raise ValueError(f"{name}: expected shape (C_out,) = ({channels},), got {tuple(vector.shape)}")
    if dtype is not None and vector.dtype != dtype:
        raise TypeError(f"{name}: expected dtype {dtype}, got {vector.dtype}; convert it with .to({dtype})")
    if vector.device != x.device:
        raise ValueError(f"{name}: expected device {x.device} as the input's, got {vector.device}")


def check_conv(x, weight, stride, padding, dilation, groups) -> None:
    """Raises ValueError or TypeError that names the argument, what was expected and what was given."""
    if x.dim() != 4:
        raise ValueError(f"input: expected 4 dimensions (N, C_in, H, W), got shape {tuple(x.shape)}")
    if weight.dim() != 4:
        raise ValueError(f"weight: expected 4 dimensions (C_out, C_in/groups, kH, kW), got shape {tuple(weight.shape)}")
    for name, values, low in (("stride", stride, 1), ("padding", padding, 0), ("dilation", dilation, 1)):
        if len(values) != 2 or min(values) < low:
            raise ValueError(f"{name}: expected two integers >= {low}, got {tuple(values)}")
    c_in, c_out = x.shape[1], weight.shape[0]
    if groups < 1 or c_in % groups or c_out % groups or c_in == 0 or c_out == 0:
        raise ValueError(
            f"groups: expected a positive divisor of C_in = {c_in} and C_out = {c_out}, both not zero, got {groups}"
        )
    kernel = (weight.shape[2], weight.shape[3])
    if weight.shape[1] * groups != c_in:
        expected = (c_out, c_in // groups, *kernel)
        raise ValueError(f"weight: expected shape (C_out, C_in/groups, kH, kW) = {expected}, got {tuple(weight.shape)}")
    if min(kernel) < 1:
        raise ValueError(f"weight: expected kernel sizes >= 1, got {tuple(weight.shape)}")
    if x.dtype not in DTYPES:
        raise TypeError(f"input: expected dtype float64, float32, bfloat16 or float16, got {x.dtype}")
    if weight.dtype != x.dtype:
        raise TypeError(f"weight: expected dtype {x.dtype} as the input's, got {weight.dtype}")
    if weight.device != x.device:
        raise ValueError(f"weight: expected device {x.device} as the input's, got {weight.device}")
    if min(output_size(x.shape, weight.shape, stride, padding, dilation)) < 1:
        raise ValueError(
            f"input: expected H and W of at least dilation * (kernel - 1) + 1 - 2 * padding, got shape {tuple(x.shape)}"
            f" for kernel {kernel}, padding {tuple(padding)}, dilation {tuple(dilation)}"
        )


def output_size(x_shape, weight_shape, stride, padding, dilation):
    """(OH, OW) = floor((H + 2 * padding - dilation * (kernel - 1) - 1) / stride) + 1."""
    return tuple(
        (x_shape[i + 2] + 2 * padding[i] - dilation[i] * (weight_shape[i + 2] - 1) - 1) // stride[i] + 1
        for i in range(2)
    )


@dataclass(frozen=True)
class ConvProblem:
    """Sizes, dtype, memory layout ("nchw" or "nhwc") and device type of one convolution."""

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
        nhwc = memory_format(x) is torch.channels_last
        return _cached(
            x.shape, weight.shape, tuple(stride), tuple(padding), tuple(dilation), groups,
            x.dtype, weight.dtype, x.device, weight.device, nhwc,
        )  # fmt: skip

    @property
    def output_size(self) -> tuple[int, int]:
        shapes = (self.n, self.c_in, self.h, self.w), (self.c_out, self.c_in // self.groups, *self.kernel)
        return output_size(*shapes, self.stride, self.padding, self.dilation)

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
        dtype = str(self.dtype).removeprefix("torch.")
        kernel, stride, padding, dilation = ("x".join(map(str, v)) for v in (self.kernel, self.stride, self.padding,
                                                                             self.dilation))  # fmt: skip
        return (
            f"n{self.n}_c{self.c_in}_h{self.h}_w{self.w}_o{self.c_out}_k{kernel}_s{stride}_p{padding}_d{dilation}"
            f"_g{self.groups}_{dtype}_{self.layout}_{self.device}"
        )


@lru_cache(maxsize=4096)
def _cached(x_shape, w_shape, stride, padding, dilation, groups, x_dtype, w_dtype, x_device, w_device, nhwc):
    # Checked on tensors without storage, so that fakes, ops and this cache share one set of checks.
    x = torch.empty(x_shape, dtype=x_dtype, device="meta")
    weight = torch.empty(w_shape, dtype=w_dtype, device="meta")
    if x_device != w_device:
        raise ValueError(f"weight: expected device {x_device} as the input's, got {w_device}")
    check_conv(x, weight, stride, padding, dilation, groups)
    n, c_in, h, w = x_shape
    layout = "nhwc" if nhwc else "nchw"
    return ConvProblem(n, c_in, h, w, w_shape[0], tuple(w_shape[2:]), stride, padding, dilation, groups, x_dtype,
                       layout, x_device.type)  # fmt: skip
