"""Grouped convolution + BatchNorm + activation kernels for ResNeXt-like networks, as PyTorch ops."""

from . import functional
from .backends import BackendError, available_backends, use_backend

__version__ = "0.1.0"
__all__ = ["BackendError", "available_backends", "functional", "use_backend"]
