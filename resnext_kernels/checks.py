"""Checks of arguments: each error names the argument, what was expected, what was given and the way out."""

import torch

from ._memo import memoised

ACTIVATIONS = ("identity", "relu", "silu")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def pair(name: str, value) -> tuple[int, int]:
    """`value` twice, or the two of `value`, as torch.nn.functional.conv2d takes them."""
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    values = values * 2 if len(values) == 1 else values
    if len(values) != 2 or not all(isinstance(v, (int, torch.SymInt)) for v in values):
        raise ValueError(f"{name}: expected an int or a pair of ints, got {value!r}")
    return values


def conv_arguments(weight, stride, padding, dilation, groups) -> tuple:
    """(stride, padding, dilation) as pairs, and groups; padding "valid" and "same" as in F.conv2d."""
    return memoised(_conv_arguments, weight.shape[2:], stride, padding, dilation, groups)


def _conv_arguments(kernel, stride, padding, dilation, groups):
    stride, dilation = pair("stride", stride), pair("dilation", dilation)
    if not isinstance(groups, (int, torch.SymInt)):
        raise ValueError(f"groups: expected an int, got {groups!r}")
    if not isinstance(padding, str):
        return stride, pair("padding", padding), dilation, groups
    around = tuple(d * (size - 1) for d, size in zip(dilation, kernel, strict=False))
    if padding == "valid":
        return stride, (0, 0), dilation, groups
    if padding != "same" or stride != (1, 1) or any(total % 2 for total in around):
        raise ValueError(
            f"padding: expected ints, 'valid', or 'same' with stride 1 and an even dilation * (kernel - 1), got "
            f"{padding!r} with stride {stride}, which pads by {around} in all; use F.pad before"
        )
    return stride, tuple(total // 2 for total in around), dilation, groups


def check_activation(activation: str) -> None:
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation: expected one of {', '.join(ACTIVATIONS)}, got {activation!r}")


def check_device(name: str, device: torch.device, expected: torch.device) -> None:
    if device != expected:
        raise ValueError(f"{name}: expected device {expected} as the input's, got {device}; move it with .to()")


def signature(tensor: torch.Tensor | None) -> tuple | None:
    return None if tensor is None else (tensor.shape, tensor.dtype, tensor.device)


def check_vectors(x: torch.Tensor, channels: int, dtype: torch.dtype | None, **vectors: torch.Tensor | None) -> None:
    """Per-channel vectors beside `x`: of `dtype`, or of any floating dtype where that is None."""
    signatures = tuple(map(signature, vectors.values()))
    memoised(_check_vectors, channels, dtype, x.device, tuple(vectors), signatures)


def _check_vectors(channels, dtype, device, names, signatures):
    for name, given in zip(names, signatures, strict=True):
        if given is None:
            continue
        shape, vector_dtype, vector_device = given
        if shape != (channels,):
            raise ValueError(f"{name}: expected shape (C_out,) = ({channels},), got {tuple(shape)}")
        if vector_dtype not in (DTYPES if dtype is None else (dtype,)):
            expected = "a floating dtype" if dtype is None else f"dtype {dtype}"
            raise TypeError(f"{name}: expected {expected}, got {vector_dtype}; convert it with .to()")
        check_device(name, vector_device, device)


def check_like(name: str, tensor: torch.Tensor, shape, like: torch.Tensor) -> None:
    """`tensor` has `shape` and the dtype and device of `like`; its strides are free."""
    if tensor.shape != torch.Size(shape):
        raise ValueError(f"{name}: expected shape (N, C_out, OH, OW) = {tuple(shape)}, got {tuple(tensor.shape)}")
    if tensor.dtype != like.dtype:
        raise TypeError(
            f"{name}: expected dtype {like.dtype} as the input's, got {tensor.dtype}; convert it with .to()"
        )
    check_device(name, tensor.device, like.device)


def check_bn(x, channels, bn_weight, bn_bias, mean, var, names=("mean", "var")) -> None:
    check_vectors(x, channels, None, bn_weight=bn_weight, bn_bias=bn_bias, **dict(zip(names, (mean, var), strict=True)))
    if (mean is None) != (var is None):
        given, missing = names if var is None else names[::-1]
        raise ValueError(f"{missing}: expected a vector as {given} is one, got None; give both or neither")


def check_batch(shape, eps: float) -> None:
    """Batch statistics need more than one value a channel and, as a channel may be constant, an eps."""
    if shape[0] * shape[2] * shape[3] == 1:
        raise ValueError(
            f"input: expected more than 1 value per channel when training, got shape {tuple(shape)} before BatchNorm; "
            "use a larger batch or training=False"
        )
    if eps <= 0:
        raise ValueError(f"eps: expected a positive number when training, got {eps}")


def check_statistics(running_mean, running_var, training, momentum, eps) -> None:
    """What the public functions say of F.batch_norm's arguments."""
    if not training and running_mean is None:
        raise ValueError("running_mean: expected a vector where training is False, got None; use training=True")
    for name, vector in (("running_mean", running_mean), ("running_var", running_var)):
        if vector is not None and vector.requires_grad:
            raise ValueError(f"{name}: expected a buffer without gradient, got one that requires it; detach() it")
    if momentum is None:
        raise ValueError(
            "momentum: expected a number, got None; for a cumulative average pass 1 / (number of batches so far)"
        )
    if eps < 0:
        raise ValueError(f"eps: expected a number >= 0, got {eps}")
