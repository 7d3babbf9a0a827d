"""One file per op: schema, checks, fake, autograd formula."""

from .grouped_conv2d import grouped_conv2d, grouped_conv2d_backward
from .grouped_conv2d_affine_act import grouped_conv2d_affine_act

__all__ = ["grouped_conv2d", "grouped_conv2d_affine_act", "grouped_conv2d_backward"]
