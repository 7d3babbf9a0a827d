"""nn.Modules over the functional ops: a drop-in nn.Conv2d, and convolution + BatchNorm + activation."""

import torch
from torch import nn

from . import functional, fusion

_ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU, "identity": nn.Identity}


class GroupedConv2d(nn.Conv2d):
    """nn.Conv2d, same constructor and parameters, whose forward is functional.grouped_conv2d.

    Where nothing is to be gained, or a padding_mode other than "zeros" asks for it, nn.Conv2d's own forward runs.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.padding_mode != "zeros" or fusion.runs_original(input):
            return super().forward(input)
        conv = (self.stride, self.padding, self.dilation, self.groups)
        return functional.grouped_conv2d(input, self.weight, self.bias, *conv)


class GroupedConvBNAct2d(nn.Module):
    """act(norm(conv(x))) in one or two passes over memory: children `conv`, `bn`, `act`.

    input (N, in_channels, H, W) -> (N, out_channels, OH, OW) in the input's memory format. padding None keeps H and W
    up to the stride. activation: "relu", "silu" or "identity". norm_layer(out_channels) makes `bn`; BatchNorm2d and
    FrozenBatchNorm2d are fused, and SyncBatchNorm where it evaluates, others run as modules behind the convolution.
    """

    def __init__(self, in_channels, out_channels, kernel_size=3, stride=1, padding=None, dilation=1, groups=1,
                 activation="relu", norm_layer=nn.BatchNorm2d):  # fmt: skip
        super().__init__()
        if activation not in _ACTIVATIONS:
            raise ValueError(f"activation: expected one of {', '.join(_ACTIVATIONS)}, got {activation!r}")
        if padding is None:
            sizes, rates = (v if isinstance(v, tuple) else (v, v) for v in (kernel_size, dilation))
            padding = tuple(rate * (size - 1) // 2 for size, rate in zip(sizes, rates, strict=True))
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias=False)
        self.bn = norm_layer(out_channels)
        self.act = _ACTIVATIONS[activation]()

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        view = self if fusion.runs_original(input) else fusion.View(self)
        return fusion.resolve(view.act(view.bn(view.conv(input))))
