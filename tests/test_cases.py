"""Shapes from other libraries' tests (--cases DIR): the forward and backward against two float64 references."""

import csv
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import resnext_kernels as rk

MAX_MACS, MAX_ELEMENTS = 1.5e8, 2**22


def runnable(row):
    sizes = {key: int(value) for key, value in row.items() if key not in ("source", "name")}
    elements = sizes["N"] * sizes["H"] * sizes["W"] * max(sizes["C_in"], sizes["C_out"])
    macs = sizes["N"] * sizes["H"] * sizes["W"] * sizes["C_out"] * sizes["C_in"] // sizes["groups"] * 9
    macs //= sizes["stride_h"] * sizes["stride_w"]
    return sizes if elements <= MAX_ELEMENTS and macs <= MAX_MACS else None


def check_row(s):
    torch.manual_seed(0)
    conv = dict(
        stride=(s["stride_h"], s["stride_w"]),
        padding=(s["pad_h"], s["pad_w"]),
        dilation=(s["dil_h"], s["dil_w"]),
        groups=s["groups"],
    )
    x = torch.randint(-2, 3, (s["N"], s["C_in"], s["H"], s["W"])).float()
    weight = torch.randint(-1, 2, (s["C_out"], s["C_in"] // s["groups"], s["kh"], s["kw"])).float()
    expected = F.conv2d(x.double(), weight.double(), **conv)
    with rk.use_backend("reference"):
        second = rk.functional.grouped_conv2d(x.double(), weight.double(), **conv)
    torch.testing.assert_close(second, expected, rtol=0, atol=0)
    for layout in (torch.contiguous_format, torch.channels_last):
        with rk.use_backend("cpu"):
            y = rk.functional.grouped_conv2d(x.contiguous(memory_format=layout), weight, **conv)
        torch.testing.assert_close(y.double(), expected, rtol=0, atol=0)


def test_every_row_of_the_case_file(request, capsys):
    folder = request.config.getoption("--cases")
    if folder is None:
        pytest.skip("needs --cases DIR, a folder with grouped_3x3.csv")
    rows = list(csv.DictReader((Path(folder) / "grouped_3x3.csv").open()))
    fitting = [sizes for row in rows if (sizes := runnable(row))]
    executed = 0
    for sizes in fitting:
        check_row(sizes)
        executed += 1
    with capsys.disabled():
        print(f"\ncase rows executed: {executed} of {len(rows)} ({len(rows) - len(fitting)} too large)")
    assert executed == len(fitting) > 0.5 * len(rows)
