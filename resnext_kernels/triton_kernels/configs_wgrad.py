"""How wgrad is laid out: its splits, and with them its sums, are the problem's alone, whatever the GPU."""

import math

from ..problem import ConvProblem
from . import configs

_PROGRAMS_WANTED, _FEWEST_PROGRAMS = 512, 132
_LONGEST_CHAIN = 8192  # products that one sum of a program adds
_MOST_PARTIALS = 0.1  # of the bytes of x and dz, where there are programs enough
# Positions of a tile, channels of a program.
_TILES = {
    "narrow 16 s1 wgrad": (32, 64), "middle 16 s1 wgrad": (16, 64), "narrow 16 s2 wgrad": (16, 64),
    "middle 16 s2 wgrad": (16, 64), "narrow 32 s1 wgrad": (16, 32), "middle 32 s1 wgrad": (16, 32),
    "narrow 32 s2 wgrad": (16, 32), "middle 32 s2 wgrad": (16, 32),
}  # fmt: skip


def key(problem: ConvProblem) -> str:
    """Packs hold 16 channels or 32."""
    name = configs.form(problem)
    if name == "gather":
        return f"gather {configs.bits(problem)} wgrad"
    return f"{'narrow' if name == 'pairs' else name} {configs.bits(problem)} s{problem.stride[0]} wgrad"


def has_prologue(problem: ConvProblem) -> bool:
    """Sums of 32 channels or addresses of partial packs leave no registers for it; the general form reads dz often."""
    return key(problem).startswith("narrow") and not _is_partial(pack(problem))


def _is_partial(made) -> bool:
    return made["GI"] < made["KC"] or made["GO"] < made["NC"] * made["PARTS"]


def pack(problem: ConvProblem) -> dict[str, int]:
    """The constants of wgrad_kernel that say what a pack is; GI and KC are x's channels, GO and NC dz's."""
    wide, groups = configs.WIDTHS[key(problem).split()[0]], problem.groups
    c_in, c_out = problem.c_in // groups, problem.c_out // groups
    together = wide // max(c_in, c_out)
    tile, channels = _TILES[key(problem)]
    inner, outer = together * c_in, together * c_out
    # A warp has the nine sums of a product: more than 16 by 32 are too many for its registers.
    made = dict(CIN=c_in, COUT=c_out, GI=inner, GO=outer, KC=16 if inner <= 16 else 32, NC=16,
                PACKS=channels // wide, PARTS=math.ceil(outer / 16))  # fmt: skip
    return dict(made, TILE=16 if _is_partial(made) else tile)


def _splits_wanted(problem: ConvProblem, programs: int) -> int:
    """Of `programs` programs each."""
    oh, ow = problem.output_size
    values = problem.n * (problem.c_in * problem.h * problem.w + problem.c_out * oh * ow)
    weights = problem.c_out * (problem.c_in // problem.groups) * math.prod(problem.kernel)
    by_bytes = int(_MOST_PARTIALS * values * problem.dtype.itemsize / (4 * weights))
    most = max(by_bytes, math.ceil(_FEWEST_PROGRAMS / programs))
    return min(math.ceil(_PROGRAMS_WANTED / programs), most)


def grid(problem: ConvProblem) -> tuple[int, int, int, int, int, int]:
    """(positions, blocks of packs, splits along strips, strips of each, chunks of rows, rows of a chunk)."""
    made, (oh, ow), dilation = pack(problem), problem.output_size, problem.dilation[0]
    positions = problem.n * ow
    strips, reach = math.ceil(positions / made["TILE"]), math.ceil(oh / dilation)
    blocks = math.ceil(problem.c_out / (made["PACKS"] * made["GO"]))
    wanted = _splits_wanted(problem, blocks * dilation)
    # Of strips first: chunks of rows load the rows between them twice.
    each = max(1, math.ceil(strips / wanted))
    chunks = min(math.ceil(wanted / max(1, math.ceil(strips / each))), max(1, reach // configs.FEWEST_ROWS))
    rows = min(math.ceil(reach / chunks), _LONGEST_CHAIN // made["TILE"])
    each = min(each, _LONGEST_CHAIN // (made["TILE"] * rows))
    return positions, blocks, math.ceil(strips / each), each, math.ceil(reach / rows) * dilation, rows


def gather(problem: ConvProblem) -> tuple[dict[str, int], int, int, int]:
    """(The constants of wgrad_gather_kernel, its programs of a tap and split, splits, blocks of positions of each)."""
    blocks = configs.gather(problem)
    c_in, c_out = problem.c_in // problem.groups, problem.c_out // problem.groups
    programs = problem.groups * math.ceil(c_out / blocks["BN"]) * math.ceil(c_in / blocks["BK"])
    tiles = math.ceil(problem.n * math.prod(problem.output_size) / blocks["BM"])
    splits = _splits_wanted(problem, programs * math.prod(problem.kernel))
    steps = max(1, min(math.ceil(tiles / splits), _LONGEST_CHAIN // blocks["BM"]))
    return blocks, programs, math.ceil(tiles / steps), steps


def config(architecture: int, problem: ConvProblem) -> configs.Config:
    name = key(problem)
    is_partial = not name.startswith("gather") and _is_partial(pack(problem))
    return configs.row(architecture, *((f"{name} partial", name) if is_partial else (name,)))
