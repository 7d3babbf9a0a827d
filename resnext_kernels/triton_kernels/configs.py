"""How a problem is laid out on the kernels: what the problem alone decides, and what the architecture adds.

The first gives the tiles, and with them the tiles of statistics: results do not depend on a measurement. The second
is data, in configs.json: for an architecture (major * 10 + minor; else the next lower one that has a row) the warps and
pipeline stages of a form, at a number of bits an element and a stride.
"""

import json
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ..problem import ConvProblem

_PROGRAMS_WANTED = 2048
_FEWEST_ROWS = 14
# Output columns of a tile (of pairs, where a form has those), channels of a program, lanes as in rows_kernel.
_TILES = {
    "pairs 16 s1": (32, 64, 8), "narrow 16 s1": (64, 64, 8), "narrow 16 s2": (64, 64, 8), "middle 16 s1": (16, 64, 8),
    "middle 16 s2": (32, 64, 8), "pairs 32 s1": (16, 32, 16), "narrow 32 s1": (16, 32, 16),
    "narrow 32 s2": (16, 32, 16), "middle 32 s1": (16, 32, 16), "middle 32 s2": (16, 32, 16),
}  # fmt: skip
_GATHER = {16: dict(BM=128, BN=64, BK=64), 32: dict(BM=64, BN=64, BK=32)}
# Tiles of the ops on images, and how many of their partial results are merged side by side.
AFFINE_ACT = dict(BLOCK_ROWS=64, BLOCK_CHANNELS=64)
STATS = dict(BLOCK_ROWS=64, BLOCK_CHANNELS=64, LANES=16)
REDUCE = dict(BLOCK_ROWS=32, BLOCK_CHANNELS=64)
MERGE = dict(TILES=64, BLOCK_CHANNELS=32)


@dataclass(frozen=True)
class Config:
    warps: int
    stages: int


@lru_cache
def table() -> dict[int, dict[str, Config]]:
    rows = json.loads(Path(__file__).with_name("configs.json").read_text())["rows"]
    return {int(name): {key: Config(*values) for key, values in each.items()} for name, each in rows.items()}


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
    # Addresses of packs that are not full take more registers.
    for name in (f"{key(problem)} partial", key(problem)) if _is_partial(problem) else (key(problem),):
        known = [each for each, rows in table().items() if each <= architecture and name in rows]
        if known:
            return table()[max(known)][name]
    raise KeyError(f"configs.json: expected a row of {key(problem)} for {architecture} or lower")


def vector(channels: int) -> int:
    """Elements that a pixel's channels are a multiple of, at most 16."""
    return math.gcd(channels, 16)


def pack(problem: ConvProblem) -> dict[str, int]:
    """The constants of rows_kernel that say what a pack is."""
    name, groups = form(problem), problem.groups
    c_in, c_out = problem.c_in // groups, problem.c_out // groups
    wide = {"pairs": 8, "narrow": 16, "middle": 32}[name]
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
    """(positions, strips, blocks of packs, chunks of rows, rows of a chunk) of rows_kernel.

    A column of the image is cut into as few chunks as make _PROGRAMS_WANTED programs, none shorter than _FEWEST_ROWS.
    """
    made, (oh, ow) = pack(problem), problem.output_size
    positions = problem.n * math.ceil(ow / made["PX"])
    strips = math.ceil(positions / made["TILE"])
    blocks = math.ceil(problem.c_out / (made["PACKS"] * made["GO"]))
    reach = math.ceil(oh / problem.dilation[0])
    programs = max(strips * blocks * problem.dilation[0], 1)
    chunks = max(1, min(math.ceil(_PROGRAMS_WANTED / programs), reach // _FEWEST_ROWS))
    rows = math.ceil(reach / chunks)
    return positions, strips, blocks, math.ceil(reach / rows) * problem.dilation[0], rows


def gather(problem: ConvProblem) -> dict[str, int]:
    """The constants of gather_kernel that say what a tile is; none is larger than a group needs."""
    blocks, groups = _GATHER[bits(problem)], problem.groups
    needed = dict(BM=blocks["BM"], BN=problem.c_out // groups, BK=problem.c_in // groups)
    return {name: min(size, max(16, 2 ** math.ceil(math.log2(needed[name])))) for name, size in blocks.items()}


def steps(row_blocks: int, channel_blocks: int) -> int:
    """How many blocks of rows a tile of a reduction has: more only where there are programs enough."""
    return max(1, min(16, row_blocks * channel_blocks // _PROGRAMS_WANTED))
