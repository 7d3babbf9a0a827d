"""Triton kernels, one file an op, with what lays them out and launches them; the kernels' files import triton."""
