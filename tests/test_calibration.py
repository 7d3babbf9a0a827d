"""Measured tables: what auto chooses by, what is not a table, and calibrate itself."""

import json
import logging

import pytest
import torch
import torchvision
from torch import nn

import resnext_kernels as rk
from resnext_kernels import backends, calibration, tables
from resnext_kernels.backends import cpu
from resnext_kernels.problem import ConvProblem
from resnext_kernels.testing import timing

pytestmark = pytest.mark.native
PROBLEM = ConvProblem.parse("n1_c8_h6_g2")


def row(eager, compiled=None):
    return {"backend": "cpu", "eager": eager, "compiled": eager if compiled is None else compiled}


def save(eager, compiled=None, device=None, op="grouped_conv2d_affine_act"):
    tables.save(device or cpu.device_name(), {f"{op} {PROBLEM}": row(eager, compiled)}, {"date": "today"})
    backends.forget()


@pytest.fixture(autouse=True)
def forget():
    yield
    backends.forget()


def chosen(op="grouped_conv2d_affine_act", problem=PROBLEM):
    return backends.explain(op, problem)


def test_auto_takes_a_kernel_that_was_measured_faster():
    assert chosen()[0] == "aten"
    save(1.5)
    assert chosen()[0] == "cpu"
    assert chosen(problem=ConvProblem.parse("n1_c8_h6_g4")) == ("aten", {"cpu": chosen(op="grouped_conv2d")[1]["cpu"]})
    x, conv, bn = torch.ones(1, 8, 6, 6), nn.Conv2d(8, 8, 3, 1, 1, groups=2, bias=False), nn.BatchNorm2d(8)
    with rk.backends.record() as ran, torch.no_grad():
        rk.functional.grouped_conv2d_bn_act(x, conv.weight, running_mean=bn.running_mean, running_var=bn.running_var,
                                            padding=1, groups=2)  # fmt: skip
    assert [name for _, _, name in ran] == ["cpu"]


def test_a_problem_not_measured_is_as_fast_as_the_slowest_of_its_class():
    save(1.5)
    relative = ConvProblem.parse("n4_c16_h30_g4")
    assert chosen(problem=relative)[0] == "cpu"
    for other in ("n4_c16_h30_g8", "n4_c16_h30_g4_s2", "n4_c16_h30_g4_nhwc", "n4_c16_h30_g4_bfloat16"):
        assert chosen(problem=ConvProblem.parse(other))[0] == "aten"
    rows = {f"grouped_conv2d_affine_act {ConvProblem.parse('n2_c8_h9_g2')}": row(0.9)}
    tables.save(cpu.device_name(), rows, {"date": "today"})
    backends.forget()
    assert chosen(problem=relative)[0] == "aten" and chosen()[0] == "cpu"


def test_shipped_tables_are_read_and_are_of_this_form(monkeypatch):
    monkeypatch.undo()
    tables.load()
    shipped = list(tables.SHIPPED.glob("*.json"))
    assert all({"device", "provenance", "rows"} <= json.loads(path.read_text()).keys() for path in shipped)
    assert len(tables.ROWS) >= sum(len(json.loads(path.read_text())["rows"]) for path in shipped) > 0


def test_auto_leaves_what_was_measured_slower_or_elsewhere():
    save(1.02)
    assert chosen() == ("aten", {"cpu": [f"measured at 1.02 times plain PyTorch's speed on {cpu.device_name()}"]})
    save(2.0, device="another processor, avx2, 64 threads")
    assert chosen()[0] == "aten"
    save(2.0)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert chosen()[0] == "aten"
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("compiled, op_in_graph", [(2.0, True), (0.9, False)])
def test_compiled_graphs_choose_by_the_compiled_measurement(compiled, op_in_graph):
    """What loses against inductor stays PyTorch's own functions, which inductor can fuse."""
    save(2.0, compiled)
    torch.compiler.reset()
    conv, bn, graphs = nn.Conv2d(8, 8, 3, 1, 1, groups=2, bias=False), nn.BatchNorm2d(8), []

    def keep(graph, inputs):
        graphs.append(graph)
        return graph

    @torch.compile(fullgraph=True, backend=keep)
    def run(x):
        return rk.functional.grouped_conv2d_bn_act(x, conv.weight, running_mean=bn.running_mean,
                                                   running_var=bn.running_var, padding=1, groups=2)  # fmt: skip

    with torch.no_grad(), rk.backends.record() as ran:
        y = run(torch.ones(1, 8, 6, 6))
        torch.testing.assert_close(y, bn.eval()(conv(torch.ones(1, 8, 6, 6))).relu())
    assert ("resnext_kernels" in graphs[0].code) == op_in_graph == bool(ran)


def test_tables_are_kept_apart_by_device_and_merged(tmp_path):
    save(1.5)
    save(1.2, op="grouped_conv2d")
    path = save(2.0, device="other") or next(tmp_path.glob("other.json"))
    assert len(list(tmp_path.iterdir())) == 2 and json.loads(path.read_text())["provenance"] == {"date": "today"}
    tables.ROWS.clear()
    tables.load()
    assert len(tables.ROWS) == 3 and chosen()[0] == "cpu"


def test_damaged_table_is_skipped_aloud(tmp_path, caplog):
    save(1.5)
    for name, text in (
        ("a.json", "{"),
        ("b.json", "[]"),
        ("c.json", '{"device": "x"}'),
        ("d.json", '{"device": "x", "rows": {"bn_stats c4_h4": {"backend": "cpu"}}}'),
    ):
        (tmp_path / name).write_text(text)
    with caplog.at_level(logging.WARNING, logger="resnext_kernels"):
        tables.load()
    assert len(tables.ROWS) == 1 and sum("is no table of measurements" in message for message in caplog.messages) == 4


def test_rows_of_another_process_stay(tmp_path):
    save(1.5)
    path = next(tmp_path.glob("*.json"))
    table = json.loads(path.read_text())
    table["rows"][f"bn_stats {PROBLEM}"] = row(2.0)
    path.write_text(json.dumps(table))
    save(1.2, op="grouped_conv2d")
    assert len(json.loads(path.read_text())["rows"]) == 3


def test_no_folder_to_write_to(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("RESNEXT_KERNELS_TABLES", str(tmp_path / "file"))
    with pytest.raises(OSError, match="tables: expected a folder to write to, .* RESNEXT_KERNELS_TABLES"):
        rk.calibrate(nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)).eval(), torch.randn(1, 4, 8, 8))
    tables.load()
    assert tables.ROWS == {}


def test_calibrate(monkeypatch, tmp_path):
    """Real measurements of a real model's layers, few of them."""
    monkeypatch.setattr(calibration, "_speedup", quick_speedup)
    torch.manual_seed(0)
    block = torchvision.models.resnet.Bottleneck
    model = torchvision.models.ResNet(block, [1, 1, 1, 1], num_classes=10, groups=32, width_per_group=4).eval()
    rk.swap(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rows = rk.calibrate(model, torch.randn(1, 3, 64, 64), compiled=False)
    assert len(rows) == 4 and all(row["backend"] == "cpu" and row["eager"] > 0 for row in rows)
    assert {row["problem"].split()[0] for row in rows} == {"grouped_conv2d_affine_act"}
    for row in rows:
        name, reasons = backends.explain(row["problem"].split()[0], ConvProblem.parse(row["problem"].split()[1]))
        assert name == ("cpu" if row["eager"] >= tables.WORTHWHILE else "aten"), reasons
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert "processor" not in json.loads(next(tmp_path.glob("*.json")).read_text())["provenance"]


def quick_speedup(ours, plain, device):
    times = timing.interleave({"ours": ours, "plain": plain}, device, rounds=3)
    return times["plain"].median_ms / times["ours"].median_ms


def test_calibrate_leaves_out_a_wrong_kernel(monkeypatch, caplog):
    monkeypatch.setattr(calibration, "_speedup", quick_speedup)
    right = cpu.grouped_conv2d
    monkeypatch.setattr(cpu, "grouped_conv2d", lambda x, *rest: right(x.roll(1, 2), *rest))
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2))
    assert rk.calibrate(model.eval(), torch.randn(1, 4, 8, 8), compiled=False) == []
    assert "outside its error gate and left out" in caplog.text


def test_freeze():
    torch.manual_seed(0)
    block = torchvision.models.resnet.Bottleneck
    model = torchvision.models.ResNet(block, [1, 1, 1, 1], num_classes=10, groups=8, width_per_group=4)
    x = torch.randn(2, 3, 64, 64)
    model(x)
    rk.swap(model)
    with pytest.raises(ValueError, match="model: expected one in evaluation"):
        rk.freeze(model)
    model.eval()
    with rk.use_backend("cpu", "aten"), torch.no_grad():
        expected = model(x)
        assert rk.freeze(model) is model
        torch.testing.assert_close(model(x), expected, rtol=0, atol=0)
        mean = model.layer1[0].bn2.running_mean
        mean.data += 0.1  # unseen: what frozen means
        torch.testing.assert_close(model(x), expected, rtol=0, atol=0)
        with torch.enable_grad():
            assert not torch.equal(model(x), expected)
        mean.data -= 0.1
        for change in (lambda: mean.add_(0.1), lambda: model.layer1[0].bn2.train(), lambda: model.train().eval()):
            rk.freeze(model.eval())
            before = model(x)
            change()
            mean.data += 0.1
            assert not torch.equal(model(x), before)
        state = {name: value + 0.5 for name, value in model.eval().state_dict().items()}
        rk.freeze(model)
        model.load_state_dict(state)
        changed = model(x)
        torch.testing.assert_close(rk.restore(model)(x), changed)
