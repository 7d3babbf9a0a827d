"""Grouped convolution + BatchNorm + activation kernels for ResNeXt-like networks, as PyTorch ops."""

__version__ = "0.1.0"

from . import functional
from .backends import BackendError, available_backends, use_backend
from .calibration import calibrate
from .explanation import explain
from .modules import GroupedConv2d, GroupedConvBNAct2d
from .swapping import freeze, register_adapter, restore, swap

__all__ = [
    "BackendError",
    "GroupedConv2d",
    "GroupedConvBNAct2d",
    "available_backends",
    "calibrate",
    "explain",
    "freeze",
    "functional",
    "register_adapter",
    "restore",
    "swap",
    "use_backend",
]
