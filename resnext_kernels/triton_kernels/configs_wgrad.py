"""How wgrad is laid out on its kernels: its tiles, and its splits, which are the problem's alone as configs.py says."""

import math

from ..problem import ConvProblem
from . import configs

_MOST_PRODUCTS = 8192  # of a sum in float32, whose error grows with them
_PROGRAMS_WANTED = 512
_FEWEST_PROGRAMS = 132
_FEWEST_ROWS = 4
_ROWS_BESIDE = 6  # that a walk down one strip takes longer by: what chunks share, and the first loads
_VECTOR = 8  # channels that are loaded together
# Positions of dz of a tile, and parts of packs of a program.
_TILES = {"narrow 16": (32, 4), "middle 16": (16, 4), "narrow 32": (16, 4), "middle 32": (16, 2)}
_GATHER = {16: dict(BM=64, BN=128, BK=64), 32: dict(BM=32, BN=64, BK=64)}


def form(problem: ConvProblem) -> str:
    """As configs.form, but no pairs: a product takes 16 output channels at least."""
    return configs.form(problem).replace("pairs", "narrow")


def key(problem: ConvProblem) -> str:
    name = f"{form(problem)} {configs.bits(problem)}"
    return name if form(problem) == "gather" else f"{name} s{problem.stride[0]}"


def config(architecture: int, problem: ConvProblem, with_dz: bool) -> configs.Config:
    names = [f"{key(problem)} wgrad"]
    if with_dz:
        names.insert(0, f"{names[-1]} dz")
    if form(problem) != "gather" and _is_uneven(pack(problem)["GI"], pack(problem)["GO"]):
        names = [*(f"{name} uneven" for name in names), *names]
    return configs.row(architecture, *names)


def makes_dz(problem: ConvProblem) -> bool:
    """Whether BatchNorm's backward is a prologue: in float32 products take longer than a pass over the images does."""
    return form(problem) != "gather" and configs.bits(problem) == 16


def _is_uneven(inner: int, outer: int) -> bool:
    """Of packs whose channels are not whole vectors: their addresses take more registers."""
    return inner % _VECTOR != 0 or outer % _VECTOR != 0


def pack(problem: ConvProblem) -> dict[str, int]:
    """The constants of wgrad_rows_kernel that say what a pack is."""
    wide = configs.WIDTHS[form(problem)]
    c_in, c_out = problem.c_in // problem.groups, problem.c_out // problem.groups
    together = wide // max(c_in, c_out)
    inner, outer = together * c_in, together * c_out
    tile, parts = _TILES[f"{form(problem)} {configs.bits(problem)}"]
    if _is_uneven(inner, outer):
        tile = 16
    of_pack = math.ceil(outer / 16)
    return dict(GI=inner, GO=outer, KC=16 if inner <= 16 else 32, PARTS=of_pack, PACKS=parts // of_pack, TILE=tile)


def gather(problem: ConvProblem) -> dict[str, int]:
    """The constants of wgrad_gather_kernel that say what a tile is."""
    return configs.at_most(_GATHER[configs.bits(problem)], problem)


def merge(splits: int) -> dict[str, int]:
    """The constants of wgrad_merge_kernel: a few splits of many weights side by side, or many of a few."""
    beside = min(64, 2 ** math.ceil(math.log2(max(splits, 1))))
    return dict(SPLITS=beside, BLOCK=min(512, 2048 // beside))


def elements(problem: ConvProblem) -> int:
    return problem.c_out * problem.c_in // problem.groups * math.prod(problem.kernel)


def rows_grid(problem: ConvProblem) -> tuple[int, int, int, int, int, int]:
    """(positions, strips of a walk, walks, blocks of packs, chunks of rows, rows of a chunk) of wgrad_rows_kernel."""
    made, dilation, (oh, ow) = pack(problem), problem.dilation[0], problem.output_size
    blocks = math.ceil(problem.c_out / (made["PACKS"] * made["GO"]))
    positions, reach = problem.n * ow, math.ceil(oh / dilation)
    strips, most_rows = math.ceil(positions / made["TILE"]), _MOST_PRODUCTS // made["TILE"]

    fewest_parts = math.ceil(reach / most_rows)

    def choices():
        for parts in range(fewest_parts, max(reach // _FEWEST_ROWS, fewest_parts) + 1):
            rows = math.ceil(reach / parts)
            chunks, reads = math.ceil(reach / rows) * dilation, (problem.stride[0] + 1) * rows + _ROWS_BESIDE
            for each in range(1, max(min(strips, most_rows // rows), 1) + 1):
                walks = math.ceil(strips / each)
                cost = _cost(problem, blocks, walks * chunks, each * reads, strips * chunks * reads)
                yield cost, walks * chunks, walks, each, chunks, rows

    _, _, walks, each, chunks, rows = min(choices())
    return positions, each, walks, blocks, chunks, rows


def gather_grid(problem: ConvProblem) -> tuple[int, int, int, int]:
    """(positions, programs of a split, splits, blocks of positions of each) of wgrad_gather_kernel."""
    blocks, groups, (oh, ow) = gather(problem), problem.groups, problem.output_size
    outs, inners = problem.c_out // groups / blocks["BN"], problem.c_in // groups / blocks["BK"]
    programs = groups * math.ceil(outs) * math.ceil(inners) * math.prod(problem.kernel)
    positions = problem.n * oh * ow
    steps = math.ceil(positions / blocks["BM"])

    def choices():
        for each in range(1, max(min(steps, _MOST_PRODUCTS // blocks["BM"]), 1) + 1):
            splits = math.ceil(steps / each)
            yield _cost(problem, programs, splits, each, steps), splits, each

    _, splits, each = min(choices())
    return positions, programs, splits, each


def _cost(problem: ConvProblem, programs: int, splits: int, longest: int, total: int) -> tuple[int, int, float]:
    """What is worse the greater it is, the first first, of so many splits of so many programs each.

    No multiprocessor is to be without work; partial sums are to take up to a tenth of what the images do; and the time
    is to be short: that of the `longest` program or that of the `total` of a split's, of those that run side by side.
    """
    fewest, small = math.ceil(_FEWEST_PROGRAMS / programs), problem.bytes // (10 * 4 * elements(problem))
    time = max(longest, total * programs / _PROGRAMS_WANTED)
    return max(fewest - splits, 0), max(splits - small, 0), time
