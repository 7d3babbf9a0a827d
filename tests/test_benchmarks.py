"""The suites of python benchmarks/run.py but `cardinality`: their rows, and how goals are judged, on made-up times."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from resnext_kernels import _native

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
QUICK = {"goals-cpu": ("--only", "4 channels"), "models": (), "overhead": ("--only", "2x2")}


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """Suite -> (what it printed, the rows that it wrote); the suites run side by side."""
    folder = tmp_path_factory.mktemp("reports")
    processes = {}
    for suite, arguments in QUICK.items():
        command = [sys.executable, BENCHMARKS / "run.py", suite, "--quick", "--threads", "1", *arguments]
        processes[suite] = subprocess.Popen(
            [*command, "--json", f"{suite}.json"], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    printed = {suite: process.communicate() for suite, process in processes.items()}
    for suite, process in processes.items():
        assert process.returncode == 0, printed[suite][1]
    return {suite: (printed[suite][0], json.loads((folder / f"{suite}.json").read_text())["rows"]) for suite in QUICK}


def test_goals_are_judged_by_contests(reports):
    printed, rows = reports["goals-cpu"]
    assert {row["kind"] for row in rows} == {"peak", "contest", "goal"}
    judged = [row for row in rows if row["kind"] == "goal"]
    assert all("4 channels" in row["name"] and row["value"] > 0 for row in judged)
    assert all(f"{row['value']:.2f}" in printed for row in judged)
    assert printed.splitlines()[-2].endswith(f"of {len(judged)}")


@pytest.mark.native
def test_goals_run_kernels_and_the_avx2_ones_in_their_own_process(reports):
    rows = reports["goals-cpu"][1]
    ran = {row["isa"]: row["cpu_isa"] for row in rows if row["kind"] == "contest"}
    assert ran[""] == _native.cpu_isa
    if "avx2" in _native._C.build_info()["isas"]:
        assert ran["avx2"] == "avx2"
    (goal,) = [row for row in rows if row["kind"] == "goal" and row["name"] == "4 channels a group"]
    assert goal["backend"] == "cpu"


def test_models_race_in_both_passes_and_the_tax_has_a_floor(reports):
    rows = reports["models"][1]
    ways = {(row["pass"], row["way"].rpartition(" ")[0]) for row in rows if row["kind"] == "model"}
    both = {(pass_name, way) for pass_name in ("eval", "train") for way in ("eager", "cpu,aten", "auto")}
    assert ways == both | {("eval", "frozen cpu,aten")}
    (tax,) = [row for row in rows if row["kind"] == "tax"]
    assert list(tax["median_ms"]) == ["resnet50", "unswapped", "swapped", "floor"]


def test_overhead_is_over_the_plain_call(reports):
    rows = reports["overhead"][1]
    plain = {row["name"]: row["us"] for row in rows if row["backend"] == "PyTorch"}
    compared = [row for row in rows if "plain" in row]
    assert {row["backend"] for row in compared} == {"cpu,aten", "auto"}
    assert all(row["difference_us"] == pytest.approx(row["us"] - plain[row["plain"]]) for row in compared)


def test_overhead_of_triton_launches(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import overhead

    us = {row["name"]: row["us"] for row in overhead.triton_launches(20)}
    assert 0 < us["Launch, rows_kernel"] < us["backend, grouped_conv2d_affine_act"]
    assert 0 < us["Launch, affine_act_kernel"] < us["backend, affine_act"] < us["op, affine_act"]


@pytest.fixture
def goals(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import goals_cpu

    return goals_cpu


def contest(name="256@28 s1", nchw=1.0, nhwc=1.0, backend="cpu", **peers):
    """A contest's row; peers as eager_nchw=2.0, and 3 ms where not given."""
    defaults = {f"{way} {layout}": 3.0 for way in ("eager", "folded") for layout in ("nchw", "channels_last")}
    peers = defaults | {peer.replace("_", " ", 1): ms for peer, ms in peers.items()}
    return {"name": name, "backend": {"nchw": backend, "nhwc": backend}, "ours": {"nchw": nchw, "nhwc": nhwc},
            "peers": peers, "floor_ms": 0.5}  # fmt: skip


def judge(goals, *rows, **changes):
    """The verdict on a goal of must 2 and goal 4."""
    goal = replace(goals.Goal("made up", 2.0, 4.0, {}), **changes)
    return goals.judge(goals.Line(goal, 1, 8, ()), rows)


@pytest.mark.parametrize("peer, verdict", [(1.99, "miss"), (2.0, "must"), (3.9, "must"), (4.0, "goal")])
def test_verdict(goals, peer, verdict):
    row = judge(goals, contest(nchw=1.0, nhwc=1.5, eager_nchw=9, eager_channels_last=9, folded_nchw=9,
                               folded_channels_last=peer))  # fmt: skip
    assert (row["verdict"], row["value"]) == (verdict, peer)
    assert (row["ours"], row["peer"], row["backend"]) == ("nchw", "folded channels_last", "cpu")


def test_plain_pytorch_is_no_win_but_never_slower(goals):
    plain = contest(backend="aten", nchw=0.1)
    assert judge(goals, plain)["verdict"] == "no win"
    assert judge(goals, contest(), plain, value=goals.geomean)["verdict"] == "no win"
    assert judge(goals, contest(backend="aten+cpu", nchw=0.1))["verdict"] == "goal"
    assert judge(goals, contest(backend="aten"), pairs=goals.dispatched)["verdict"] == "must"


def test_the_worst_layer_and_layout_count(goals):
    rows = contest("256@28 s1", nchw=0.5), contest("256@56 s2", nchw=1.5, nhwc=1.0)
    assert (judge(goals, *rows)["value"], judge(goals, *rows)["weakest"]) == (3, "256@56 s2")
    assert judge(goals, *rows, pairs=goals.each)["value"] == 2
    assert judge(goals, *rows, value=goals.geomean)["value"] == pytest.approx(18**0.5)


def test_which_peers_a_line_is_held_against(goals):
    row = contest(nchw=1.0, nhwc=0.5, eager_nchw=8, folded_nchw=6, eager_channels_last=5, folded_channels_last=4)
    for pairs, value in ((goals.better, 8), (goals.each, 4), (goals.nchw, 4), (goals.nhwc, 8), (goals.nchw_user, 6),
                         (goals.eager, 8), (goals.of_floor, 1)):  # fmt: skip
        assert judge(goals, row, pairs=pairs)["value"] == value


def test_weights_are_resnext50s_and_the_worse_layout_counts(goals):
    asked = dict(pairs=goals.eager, value=goals.weighted)
    rows = [
        contest(name, eager_nchw=4 if name == "128@56 s1" else 8, eager_channels_last=8) for name in goals.RESNEXT50
    ]
    assert judge(goals, *rows, **asked)["value"] == (3 * 4 + 13 * 8) / 16
    for row in rows:
        row["ours"]["nhwc"] = 8.0
    assert judge(goals, *rows, **asked)["value"] == 1


@pytest.mark.parametrize(
    "plain, ours, value", [(0.05, 0.058, 1), (0.05, 0.0625, 0.8), (0.05, 0.04, 1.25), (1.0, 1.008, 1 / 1.008)]
)
def test_a_tiny_call_may_be_slower_by_the_slack(goals, plain, ours, value):
    row = contest(nchw=ours, nhwc=1.0, eager_nchw=plain)
    assert judge(goals, row, pairs=goals.dispatched)["value"] == pytest.approx(value)


def test_lines_share_their_measurements(goals):
    lines = goals.lines(goals.GOALS, (1, 2))
    assert {(line.threads, line.images) for line in lines} == {(t, n) for t in (1, 2) for n in (1, 8)}
    assert all(line.cases for line in lines)
    resnext50 = {line.cases for line in lines if line.goal.name.startswith("ResNeXt-50") and line.threads == 1}
    assert len(resnext50) == 2, "three lines, one set of cases for each number of images"
    (four,) = [line for line in lines if (line.goal.name, line.threads, line.images) == ("4 channels a group", 1, 8)]
    assert any(set(four.cases) <= set(cases) for cases in resnext50)
    (renamed,) = goals.lines([replace(four.goal, layers={"x": four.goal.layers["128@56 s1"]}, batches=(8,))], (1,))
    assert renamed.cases == four.cases and renamed.cases[0].name == "x"


def test_overhead_is_judged_by_the_costliest_call(goals):
    def call(name, difference_us):
        return {"name": name, "backend": "auto", "us": 50.0, "plain": "F.conv2d", "difference_us": difference_us}

    for most, verdict in ((5, "goal"), (10, "must"), (10.1, "miss")):
        (row,) = goals.judge_overhead(1, [call("a", -3), call("b", most)])
        assert (row["value"], row["verdict"], row["weakest"]) == (most, verdict, "b")


def test_the_last_lines_count(goals):
    console = Console(record=True, width=170)
    goals.report([judge(goals, contest(nchw=ms, nhwc=ms)) for ms in (0.5, 1.0, 2.0)], console)
    assert console.export_text().splitlines()[-2:] == ["musts held: 2 of 3", "goals held: 1 of 3"]
