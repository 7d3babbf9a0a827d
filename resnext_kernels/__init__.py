"""Grouped convolution + BatchNorm + activation kernels for ResNeXt-like networks, as PyTorch ops."""

from . import functional
from .backends import BackendError, available_backends, use_backend
from .explanation import explain
from .modules import GroupedConv2d, GroupedConvBNAct2d
from .swapping import register_adapter, restore, swap

__version__ = "0.1.0"
__all__ = [
    "BackendError",
    "GroupedConv2d",
    "GroupedConvBNAct2d",
    "available_backends",
    "explain",
    "functional",
    "register_adapter",
    "restore",
    "swap",
    "use_backend",
]
