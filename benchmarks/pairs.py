"""How contests' rows are read: pairs of ours and PyTorch's, one ratio from all pairs, whether it is enough."""

import math
from dataclasses import dataclass

from layers import LAYOUTS

# How often each of the seven layers occurs in ResNeXt-50.
COUNTS = {"128@56 s1": 3, "256@56 s2": 1, "256@28 s1": 3, "512@28 s2": 1, "512@14 s1": 5, "1024@14 s2": 1,
          "1024@7 s1": 2}  # fmt: skip
# A call that takes PyTorch less than this is tiny: there ours may be slower by SLACK_MS.
TINY_MS, SLACK_MS = 0.1, 0.01


@dataclass
class Pair:
    """Ours against a peer on one layer."""

    layer: str
    backend: str
    ours: str
    peer: str
    ours_ms: float
    peer_ms: float

    @property
    def ratio(self) -> float:
        return self.peer_ms / self.ours_ms


def _pair(row, layout, peers) -> Pair:
    """Ours in one layout against the fastest of `peers`, name -> ms."""
    peer = min(peers, key=peers.get)
    return Pair(row["name"], row["backend"][layout], layout, peer, row["ours"][layout], peers[peer])


def better(row) -> list[Pair]:
    """The better of our layouts against the best path."""
    return [_pair(row, min(row["ours"], key=row["ours"].get), row["peers"])]


def each(row) -> list[Pair]:
    """Each of our layouts against the best path of either."""
    return [_pair(row, layout, row["peers"]) for layout in LAYOUTS]


def nchw(row) -> list[Pair]:
    return [_pair(row, "nchw", row["peers"])]


def nhwc(row) -> list[Pair]:
    return [_pair(row, "nhwc", row["peers"])]


def nchw_user(row) -> list[Pair]:
    """NCHW against the best NCHW path."""
    return [_pair(row, "nchw", {peer: ms for peer, ms in row["peers"].items() if peer.endswith(" nchw")})]


def eager(row) -> list[Pair]:
    """Each of our layouts against eager in the same."""
    return [_pair(row, layout, {name: row["peers"][name]}) for layout, name in
            ((layout, f"eager {name}") for layout, name in LAYOUTS.items())]  # fmt: skip


def dispatched(row) -> list[Pair]:
    """As eager, where a tiny call that is slower by no more than the slack counts as not slower."""
    pairs = eager(row)
    for pair in pairs:
        if pair.peer_ms < TINY_MS and pair.ours_ms <= pair.peer_ms + SLACK_MS:
            pair.ours_ms = min(pair.ours_ms, pair.peer_ms)
    return pairs


def of_floor(row) -> list[Pair]:
    """The better of our layouts against the time that the arithmetic or the memory takes at least."""
    return [_pair(row, min(row["ours"], key=row["ours"].get), {"floor": row["floor_ms"]})]


def weakest(pairs) -> Pair:
    return min(pairs, key=lambda pair: pair.ratio)


def worst(pairs) -> float:
    return weakest(pairs).ratio


def geomean(pairs) -> float:
    return math.exp(sum(math.log(pair.ratio) for pair in pairs) / len(pairs))


def weighted(pairs) -> float:
    """Of the summed times, each layer as often as ResNeXt-50 has it; the worse layout."""

    def total(layout, which):
        return sum(COUNTS[pair.layer] * getattr(pair, which) for pair in pairs if pair.ours == layout)

    return min(total(layout, "peer_ms") / total(layout, "ours_ms") for layout in LAYOUTS)


def verdict(value, must, goal, won=True) -> str:
    """won: whether a kernel ran; plain PyTorch is no win of ours."""
    if not won:
        return "no win"
    return "goal" if value >= goal else "must" if value >= must else "miss"
