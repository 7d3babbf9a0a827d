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
        self._is_empty = 0 in grid
        self._compiled = {}

    def __call__(self, *tensors):
        """The kernel's first arguments, None for those that it is to do without: always the same ones."""
        if self._is_empty:
            return
        first = tensors[0]
        device = first.get_device()  # -1 of the CPU, in the interpreter
        if device >= 0 and device != torch.cuda.current_device():
            with torch.cuda.device(device):
                return self(*tensors)
        which = (device, first.dtype, *map(type, tensors))
        known = self._compiled.get(which)
        if known is None:
            compiled = self._kernel[self._grid](*tensors, *self._integers, **self._constants, **self._options)
            if compiled is not None:  # as it is in the interpreter
                self._compiled[which] = self._looked_up(compiled)
            return
        # What compiled[grid] does, with what it looks up each time looked up once.
        compiled, run, function, metadata, rest, runtime, get_stream = known
        if runtime.launch_enter_hook.calls or runtime.launch_exit_hook.calls:  # a profiler's
            compiled[self._grid](*tensors, *rest)
        else:
            run(*self._grid, get_stream(device), function, metadata, None, None, None, *tensors, *rest)

    def _looked_up(self, compiled):
        from triton import knobs
        from triton.runtime import driver

        rest = *self._integers, *self._constants.values()
        of_kernel = compiled, compiled.run, compiled.function, compiled.packed_metadata, rest
        return *of_kernel, knobs.runtime, driver.active.get_current_stream
