"""How a problem is laid out on the kernels: what the problem alone decides, and what the architecture adds.

The first gives the tiles, and with them the tiles of statistics: results do not depend on a measurement. The second
is data, in the tables of config_tables.py: for an architecture (major * 10 + minor) the warps and pipeline stages of a
form, at a number of bits an element and a stride.
"""

import math
from dataclasses import replace

from ..problem import ConvProblem
from .config_tables import Config, row

_PROGRAMS_WANTED = 2048
FEWEST_ROWS = 14
# Output columns of a tile (of pairs, where a form has those), channels of a program, lanes as in rows_kernel.
_TILES = {
    "pairs 16 s1": (32, 64, 8), "narrow 16 s1": (64, 64, 8), "narrow 16 s2": (64, 64, 8), "middle 16 s1": (16, 64, 8),
    "middle 16 s2": (32, 64, 8), "pairs 32 s1": (16, 32, 16), "narrow 32 s1": (16, 32, 16),
    "narrow 32 s2": (16, 32, 16), "middle 32 s1": (16, 32, 16), "middle 32 s2": (16, 32, 16),
}  # fmt: skip
# The same of dgrad_strided_kernel: columns of dz of a tile, channels of a program.
_STRIDED_TILES = {
    "pairs 16 s2 dgrad": (64, 64), "narrow 16 s2 dgrad": (32, 64), "middle 16 s2 dgrad": (16, 64),
    "pairs 32 s2 dgrad": (16, 32), "narrow 32 s2 dgrad": (16, 32), "middle 32 s2 dgrad": (16, 32),
}  # fmt: skip
WIDTHS = {"pairs": 8, "narrow": 16, "middle": 32}  # channels of a pack
_GATHER = {16: dict(BM=128, BN=64, BK=64), 32: dict(BM=64, BN=64, BK=32)}
# Tiles of the ops on images, and how many of their partial results are merged side by side.
AFFINE_ACT = dict(BLOCK_ROWS=64, BLOCK_CHANNELS=64)
STATS = dict(BLOCK_ROWS=64, BLOCK_CHANNELS=64, LANES=16)
REDUCE = dict(BLOCK_ROWS=32, BLOCK_CHANNELS=64)
MERGE = dict(TILES=64, BLOCK_CHANNELS=32)


def bits(problem: ConvProblem) -> int:
    return 8 * problem.dtype.itemsize


def form(problem: ConvProblem) -> str:
    """pairs, narrow and middle are packs of 2 x 8, 16 and 32 channels of rows_kernel, gather is gather_kernel."""
    widest = max(problem.c_in, problem.c_out) // problem.groups
    stride, dilation = problem.stride, problem.dilation
    walks = problem.kernel == (3, 3) and stride in ((1, 1), (2, 2)) and dilation[0] == dilation[1]
    if not walks or (stride == (2, 2) and dilation != (1, 1)) or widest > 32:
        return "gather"
    if widest <= 8 and stride == dilation == (1, 1):
        return "pairs"
    return "narrow" if widest <= 16 else "middle"


def key(problem: ConvProblem) -> str:
    name = form(problem)
    return f"{name} {bits(problem)}" + (f" s{problem.stride[0]}" if name != "gather" else "")


def config(architecture: int, problem: ConvProblem) -> Config:
    name = key(problem)
    # Addresses of packs that are not full take more registers.
    return row(architecture, *((f"{name} partial", name) if _is_partial(problem) else (name,)))


def strided_config(architecture: int, problem: ConvProblem) -> Config:
    return row(architecture, strided_key(problem))


def vectors(channels: int) -> tuple[int, int]:
    """channels as (how many vectors, of how many elements): at most 16."""
    size = math.gcd(channels, 16)
    return channels // size, size


def transposed(problem: ConvProblem) -> ConvProblem:
    """Of dz's channels to x's, with the taps turned round: where the stride is 1, its forward is dgrad."""
    reach = (problem.dilation[i] * (problem.kernel[i] - 1) for i in range(2))
    padding = tuple(each - pad for each, pad in zip(reach, problem.padding, strict=True))
    h, w = problem.output_size
    return replace(problem, c_in=problem.c_out, c_out=problem.c_in, h=h, w=w, padding=padding)


def pack(problem: ConvProblem) -> dict[str, int]:
    """The constants of rows_kernel that say what a pack is."""
    name, groups = form(problem), problem.groups
    c_in, c_out = problem.c_in // groups, problem.c_out // groups
    wide = WIDTHS[name]
    together = max(wide // max(c_in, c_out), 1)
    inner, outer = together * c_in, together * c_out
    sizes = {"pairs": (8, 8)}.get(name, tuple(16 if each <= 16 else 32 for each in (inner, outer)))
    tile, channels, lanes = _TILES[key(problem)]
    return dict(GI=inner, GO=outer, KC=sizes[0], NC=sizes[1], PACKS=channels // wide, PX=2 if name == "pairs" else 1,
                TILE=tile, LANES=lanes)  # fmt: skip


def _is_partial(problem: ConvProblem) -> bool:
    if form(problem) == "gather":
        return False
    made = pack(problem)
    return made["GI"] < made["KC"] or made["GO"] < made["NC"]


def rows_grid(problem: ConvProblem) -> tuple[int, int, int, int, int]:
    """(positions, strips, blocks of packs, chunks of rows, rows of a chunk) of rows_kernel."""
    made, (oh, ow) = pack(problem), problem.output_size
    blocks = math.ceil(problem.c_out / (made["PACKS"] * made["GO"]))
    positions = problem.n * math.ceil(ow / made["PX"])
    return _grid(positions, made["TILE"], blocks, math.ceil(oh / problem.dilation[0]), problem.dilation[0])


def _grid(positions, tile, blocks, reach, dilation) -> tuple[int, int, int, int, int]:
    """A column of the image is cut into as few chunks as make _PROGRAMS_WANTED programs, none below FEWEST_ROWS."""
    strips = math.ceil(positions / tile)
    programs = max(strips * blocks * dilation, 1)
    chunks = max(1, min(math.ceil(_PROGRAMS_WANTED / programs), reach // FEWEST_ROWS))
    rows = math.ceil(reach / chunks)
    return positions, strips, blocks, math.ceil(reach / rows) * dilation, rows


def _strided_form(problem: ConvProblem) -> str:
    """dgrad_strided_kernel has pairs of columns at every width, so that narrow groups are in packs of 8 channels."""
    return "pairs" if max(problem.c_in, problem.c_out) // problem.groups <= 8 else form(problem)


def strided_key(problem: ConvProblem) -> str:
    return f"{_strided_form(problem)} {bits(problem)} s2 dgrad"


def strided_pack(problem: ConvProblem) -> dict[str, int]:
    """The constants of dgrad_strided_kernel that say what a pack is; GI and NC are x's channels, GO and KC dz's."""
    wide, groups = WIDTHS[_strided_form(problem)], problem.groups
    c_in, c_out = problem.c_in // groups, problem.c_out // groups
    together = wide // max(c_in, c_out)
    tile, channels = _STRIDED_TILES[strided_key(problem)]
    inner, outer = together * c_in, together * c_out
    kc, nc = (8, 8) if wide == 8 else (16 if each <= 16 else 32 for each in (outer, inner))
    return dict(GI=inner, GO=outer, KC=kc, NC=nc, PACKS=channels // wide, TILE=tile)


def strided_grid(problem: ConvProblem) -> tuple[int, int, int, int, int]:
    """As rows_grid, in pairs of x's rows and columns with the padding counted in."""
    made = strided_pack(problem)
    reach, across = (
        (size - 1 + pad) // 2 - pad // 2 + 1
        for size, pad in zip((problem.h, problem.w), problem.padding, strict=True)
    )  # fmt: skip
    blocks = math.ceil(problem.c_in / (made["PACKS"] * made["GI"]))
    return _grid(problem.n * across, made["TILE"], blocks, reach, 1)


def gather(problem: ConvProblem) -> dict[str, int]:
    """The constants of gather_kernel that say what a tile is."""
    return at_most(_GATHER[bits(problem)], problem)


def at_most(blocks: dict[str, int], problem: ConvProblem) -> dict[str, int]:
    """The blocks, of which none is larger than a group needs."""
    groups = problem.groups
    needed = dict(BM=blocks["BM"], BN=problem.c_out // groups, BK=problem.c_in // groups)
    return {name: min(size, max(16, 2 ** math.ceil(math.log2(needed[name])))) for name, size in blocks.items()}


def steps(row_blocks: int, channel_blocks: int) -> int:
    """How many blocks of rows a tile of a reduction has: more only where there are programs enough."""
    return max(1, min(16, row_blocks * channel_blocks // _PROGRAMS_WANTED))
