"""Functions with the names, order and defaults of torch.nn.functional."""

import torch

from . import backends, ops
from .problem import pair


def _autocast(x, *tensors):
    """Under autocast, floating tensors in the autocast dtype, as nn.functional.conv2d has them."""
    if not torch.is_autocast_enabled(x.device.type):
        return x, *tensors
    dtype = torch.get_autocast_dtype(x.device.type)
    return tuple(t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in (x, *tensors))


def grouped_conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    """torch.nn.functional.conv2d on the chosen backend, differentiable twice.

    input (N, C_in, H, W), weight (C_out, C_in/groups, kH, kW), bias (C_out,); one of float64, float32, bfloat16 or
    float16 for all. The output (N, C_out, OH, OW) has the input's memory format.
    Raises ValueError or TypeError on bad arguments, BackendError if a backend asked for by name cannot run it.
    """
    x, weight, bias = _autocast(input, weight, bias)
    conv = (pair("stride", stride), pair("padding", padding), pair("dilation", dilation), groups)
    return ops.grouped_conv2d(x, weight, bias, *conv, backends.requested())
