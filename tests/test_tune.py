"""python -m resnext_kernels tune without a GPU: the search over kernels that are faked, and the user's table."""

import json
import logging

import pytest
import torch

from resnext_kernels import __main__ as cli
from resnext_kernels import backends, tables, tuning
from resnext_kernels._memo import memoised
from resnext_kernels.backends import reference, triton
from resnext_kernels.problem import ConvProblem
from resnext_kernels.testing import timing
from resnext_kernels.triton_kernels import config_tables, configs
from resnext_kernels.triton_kernels.config_tables import Config

conv_plans = pytest.importorskip("resnext_kernels.triton_kernels.conv_plans")

ALL_PASSES = tuning.PASSES
ROW, TEXT = "pairs 16 s1", "n3_c16_h6_g4_float16"
PROBLEM = ConvProblem.parse(f"{TEXT}_nhwc")
SHIPPED, FASTEST = Config(4, 3), Config(2, 1)
# What a configuration takes, in ms; every other one takes 5.
TIMES = {FASTEST: 0.5, Config(2, 2): 0.6, Config(8, 1): 1.0, SHIPPED: 4.0}


class Fakes:
    """The reference in the place of the kernels, with a defect for each of some configurations."""

    def __init__(self):
        self.defects, self.ran, self.timed = {}, [], []

    def op(self, name):
        def run(x, weight, *rest):
            conv = [each for each in rest if isinstance(each, (list, int))]
            problem = ConvProblem.from_tensors(x, weight, *conv)
            config = memoised(configs.config, 90, problem)
            self.ran.append((name, problem.n, config))
            results = getattr(reference, name)(x, weight, *rest)
            return self.defects.get(config, lambda *results: results[1])(name, results)

        return run

    def interleave(self, functions, device):
        for function in functions.values():
            function()
            self.timed.append(self.ran[-1])
        assert [config for *_, config in self.timed[-len(functions) :]] == list(functions)
        return {config: timing.Timing(*[TIMES.get(config, 5.0)] * 3) for config in functions}


@pytest.fixture
def fakes(monkeypatch):
    made = Fakes()
    monkeypatch.setattr(tuning, "PASSES", {"forward": ALL_PASSES["forward"]})
    for op in ALL_PASSES["forward"].ops:
        monkeypatch.setattr(triton, op, made.op(op))
    monkeypatch.setattr(triton, "DEVICE", "cpu")
    monkeypatch.setattr(triton, "missing", lambda: None)
    monkeypatch.setattr(triton, "architecture", lambda index: 90)
    monkeypatch.setattr(timing, "interleave", made.interleave)
    backends.forget()
    yield made
    backends.forget()


def tune(text=TEXT):
    ((names, jobs),) = tuning.rows(tuning.problems([text])).items()
    return tuning.tune(names, jobs)


def test_the_fastest_of_those_that_are_right(fakes):
    outcome = tune()
    assert (outcome.name, outcome.shipped, outcome.best, outcome.dropped) == (ROW, SHIPPED, FASTEST, {})
    assert outcome.gain == pytest.approx(8)
    # What is timed is the problem itself, of all candidates side by side.
    assert fakes.timed == [("grouped_conv2d", 3, config) for config in tuning.candidates((ROW,))]


def wrong(name, results):
    """By more than a gate allows, in one op and one element."""
    if name == "grouped_conv2d_stats":
        results[1][3] += 1
    return results


def other_bits(name, results):
    if name == "grouped_conv2d_affine_act":
        results[0, 0, 0, 0] = torch.nextafter(results[0, 0, 0, 0], torch.tensor(9.0).half())
    return results


def does_not_fit(name, results):
    raise MemoryError("out of resource: shared memory\nRequired: 300000")


@pytest.mark.parametrize(
    "defect, reason",
    [(wrong, "outside its error gate: grouped_conv2d_stats"), (other_bits, "other bits: grouped_conv2d_affine_act"),
     (does_not_fit, "MemoryError: out of resource: shared memory")],
)  # fmt: skip
def test_a_candidate_with_a_defect_is_dropped_before_it_is_timed(fakes, defect, reason):
    fakes.defects[FASTEST] = defect
    outcome = tune()
    assert outcome.best == Config(2, 2)
    assert list(outcome.dropped) == [FASTEST] and outcome.dropped[FASTEST].startswith(reason)
    assert "\n" not in outcome.dropped[FASTEST]
    assert FASTEST not in [config for *_, config in fakes.timed]


def test_a_candidate_must_be_right_on_every_problem(fakes):
    def wrong_in_bfloat16(name, results):
        first = results if isinstance(results, torch.Tensor) else results[0]
        return wrong(name, results) if first.dtype == torch.bfloat16 else results

    fakes.defects[FASTEST] = wrong_in_bfloat16
    ((names, jobs),) = tuning.rows(tuning.problems([TEXT, TEXT.replace("float16", "bfloat16")])).items()
    assert len(jobs) == 2 and tuning.tune(names, jobs).best == Config(2, 2)


def test_a_gpu_on_which_what_ships_cannot_run(fakes):
    fakes.defects[SHIPPED] = does_not_fit
    outcome = tune()
    assert outcome.best == FASTEST and outcome.gain is None and list(outcome.dropped) == [SHIPPED]


def test_tiles_and_splits_stay_whatever_is_tried(fakes, monkeypatch):
    """A configuration has warps and stages alone, and what lays a problem out does not read it."""
    monkeypatch.setattr(tuning, "PASSES", ALL_PASSES)
    launches = []
    monkeypatch.setattr(conv_plans, "Launch", lambda *args, **constants: launches.append((args, constants)))

    def laid_out(jobs):
        """All that is launched, but for warps and stages."""
        launches.clear()
        for name, problem in jobs:
            tuning.PASSES[name].plan(conv_plans, problem, 90)
        return [(args[:3], constants) for args, constants in launches], {args[3:] for args, _ in launches}

    rows = tuning.rows(tuning.problems([]))
    assert len(rows) > 20 and all(len(args) in (3, 5) for args, _ in launches)
    for names, jobs in rows.items():
        expected, _ = laid_out(jobs)
        for config in tuning.candidates(names):
            assert set(vars(config)) == {"warps", "stages"}
            with config_tables.trying(names[0], config):
                assert laid_out(jobs) == (expected, {(), (config.warps, config.stages)})


def test_every_convolution_of_the_backend_is_tuned():
    tuned = {op for each in ALL_PASSES.values() for op in each.ops}
    assert {op for op in dir(triton) if op.startswith("grouped_conv2d")} <= tuned


def test_the_table_is_written_beside_those_of_calibrate_and_read(fakes, tmp_path, capsys):
    assert cli.main(["tune", TEXT]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"{FASTEST}, 8.00 times the speed of {SHIPPED}" in shown
    path = tmp_path / "triton" / "sm_90.json"
    table = json.loads(path.read_text())
    assert table["rows"] == {"90": {ROW: [2, 1]}}
    assert {"gpu", "triton", "torch", "date"} <= set(table["provenance"])
    assert table["provenance"]["command"] == f"python -m resnext_kernels tune {TEXT}"
    assert configs.config(90, PROBLEM) == FASTEST
    assert configs.config(100, PROBLEM) == configs.config(80, PROBLEM) == SHIPPED  # it is of sm_90 alone
    assert configs.config(90, ConvProblem.parse(f"{TEXT}_s2_nhwc")) == Config(4, 2)
    tables.load()
    assert not tables.ROWS


def test_rows_of_other_problems_stay_and_the_same_row_is_replaced(fakes):
    for text in ("n3_c16_h6_g4_s2_float16", TEXT):
        assert cli.main(["tune", text]) == 0
    fakes.defects[FASTEST] = does_not_fit  # what was tuned before is no part of the search
    assert cli.main(["tune", TEXT]) == 0
    assert config_tables.users(90) == {ROW: Config(2, 2), "pairs 16 s1": Config(2, 2), "narrow 16 s2": FASTEST}


def test_a_row_for_packs_that_are_not_full_is_one_of_its_own(fakes):
    """A user's row of the whole class does not go before what ships for the part."""
    config_tables.save(90, {ROW: FASTEST}, {})
    partial = ConvProblem.parse("n3_c24_h6_g4_float16_nhwc")
    assert tuning.PASSES["forward"].names(partial) == (f"{ROW} partial", ROW)
    assert configs.config(90, partial) == Config(8, 3)
    config_tables.save(90, {f"{ROW} partial": Config(2, 2)}, {})
    assert configs.config(90, partial) == Config(2, 2) and configs.config(90, PROBLEM) == FASTEST


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"rows": {}}', '{"rows": {"90": {"pairs 16 s1": [3, 1]}}}', '{"rows": {"90": {"pairs 16 s1": 4}}}'],
)
def test_a_damaged_table_is_ignored_aloud(tmp_path, caplog, text):
    path = tmp_path / "triton" / "sm_90.json"
    path.parent.mkdir()
    path.write_text(text)
    with caplog.at_level(logging.WARNING, logger="resnext_kernels"):
        assert configs.config(90, PROBLEM) == configs.config(90, PROBLEM) == SHIPPED
    assert [f"{path} is no table of configurations" in message for message in caplog.messages] == [True]
    config_tables.save(90, {ROW: FASTEST}, {})
    assert configs.config(90, PROBLEM) == FASTEST


def test_nothing_that_is_right(fakes, capsys, tmp_path):
    fakes.defects = dict.fromkeys(tuning.candidates((ROW,)), does_not_fit)
    assert cli.main(["tune", TEXT]) == 1
    assert "no candidate is right" in capsys.readouterr().out and not list(tmp_path.glob("triton/*.json"))


@pytest.mark.parametrize(
    "text, words",
    [("c16", "at least channels and height"), ("c16_h4_float64", "takes float32, bfloat16 and float16"), ("x", "'x'")],
)
def test_a_problem_that_is_none(fakes, capsys, text, words):
    assert cli.main(["tune", text]) == 2 and not fakes.ran
    assert words in capsys.readouterr().out


def test_a_folder_that_cannot_be_written_to(fakes, monkeypatch, tmp_path, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("RESNEXT_KERNELS_TABLES", str(tmp_path / "file"))
    assert cli.main(["tune", TEXT]) == 2 and not fakes.ran
    assert "expected a folder to write to" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu(capsys):
    assert cli.main(["tune"]) == 2
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("error: tune: expected a GPU for the backend triton: no ")


def test_a_dry_run_lists_the_candidates(capsys, tmp_path):
    assert cli.main(["tune", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert f"{ROW} (measured by 8)" in shown and str(FASTEST) in shown and not list(tmp_path.iterdir())
    assert cli.main(["tune", "--dry-run", "c8"]) == 2
