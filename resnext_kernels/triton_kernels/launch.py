"""Launches a kernel on the current stream of its tensors' device, by the compiled kernel once there is one."""

import torch

_ALIGNMENT = 16


def aligned(tensor):
    """The tensor, or a copy from where vectors of 16 bytes can be loaded."""
    return tensor if tensor.data_ptr() % _ALIGNMENT == 0 else tensor.clone(memory_format=torch.preserve_format)


class Launch:
    """A kernel with the grid, the integers and the constants of one problem.

    triton looks a kernel up by all its arguments, which takes longer than a launch; here they are the problem's own,
    and addresses are multiples of 16 bytes, so that what the first call compiled serves the others.
    """

    def __init__(self, kernel, grid: tuple[int, int, int], integers: tuple[int, ...], warps=4, stages=3, **constants):
        names = kernel.arg_names[len(kernel.arg_names) - len(constants) :]
        assert set(names) == set(constants), f"{names}, {tuple(constants)}"
        self._kernel, self._grid, self._integers = kernel, grid, integers
        self._constants = {name: constants[name] for name in names}
        self._options = dict(num_warps=warps, num_stages=stages)
        self._compiled = {}

    def __call__(self, *tensors):
        """The kernel's first arguments, None for those that it is to do without: always the same ones."""
        if 0 in self._grid:
            return
        device = tensors[0].device
        if device.type == "cuda" and device.index != torch.cuda.current_device():
            with torch.cuda.device(device):
                return self(*tensors)
        which = (device.index, tensors[0].dtype, *(tensor is None for tensor in tensors))
        compiled = self._compiled.get(which)
        if compiled is None:
            kernel = self._kernel[self._grid]
            # None in the interpreter.
            self._compiled[which] = kernel(*tensors, *self._integers, **self._constants, **self._options)
        else:
            compiled[self._grid](*tensors, *self._integers, *self._constants.values())
