"""Random calls of the raw ops: each either raises a clear error or gives the specified result."""

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from resnext_kernels.testing.verify import call, judge

# The same examples every time: the gates are probabilistic, and a failure must not depend on the day.
SETTINGS = settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
small = st.integers(0, 9)
pairs = st.lists(st.integers(-1, 3), min_size=1, max_size=3)


@SETTINGS
@given(
    x=st.lists(small, min_size=0, max_size=5), weight=st.lists(small, min_size=4, max_size=4), stride=pairs,
    padding=pairs, dilation=pairs, groups=st.integers(-1, 9), channels_last=st.booleans(), step=st.integers(1, 2),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int32]),
    activation=st.sampled_from(["relu", "silu", "identity", "tanh"]), seed=st.integers(0, 99),
)  # fmt: skip
def test_random_calls(x, weight, stride, padding, dilation, groups, channels_last, step, dtype, activation, seed):
    hold_or_raise(x, weight, stride, padding, dilation, groups, channels_last, step, dtype, activation, seed)


@st.composite
def legal(draw):
    """Mostly legal arguments, so that kernels run and not only checks."""
    groups, cin, cout = draw(st.integers(1, 5)), draw(st.integers(1, 17)), draw(st.integers(1, 17))
    kernel, image = draw(st.tuples(*[st.integers(1, 3)] * 2)), draw(st.tuples(*[st.integers(1, 19)] * 2))
    x = [draw(st.integers(0, 3)), groups * cin, *image]
    conv = (draw(st.tuples(*[st.integers(low, 3)] * 2)) for low in (1, 0, 1))
    return x, [groups * cout, cin, *kernel], *map(list, conv), groups


@SETTINGS
@given(
    conv=legal(), channels_last=st.booleans(), step=st.integers(1, 2), seed=st.integers(0, 99),
    activation=st.sampled_from(["relu", "silu", "identity"]),
)  # fmt: skip
def test_random_legal_calls(conv, channels_last, step, activation, seed):
    hold_or_raise(*conv, channels_last, step, torch.float32, activation, seed)


def hold_or_raise(x, weight, stride, padding, dilation, groups, channels_last, step, dtype, activation, seed):
    torch.manual_seed(seed)
    x = torch.randn([size * step for size in x]).to(dtype)
    if channels_last and x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    x = x[tuple(slice(None, None, step) for _ in x.shape)]
    weight = torch.randn(weight).to(dtype)
    vector = torch.float64 if dtype == torch.float64 else torch.float32
    scale, shift = torch.rand(weight.shape[0]).to(vector), torch.randn(weight.shape[0]).to(vector)
    args = (x, weight, scale, shift, stride, padding, dilation, groups, activation)
    try:
        results = call("grouped_conv2d_affine_act", args, "cpu,aten")
    except (ValueError, TypeError) as error:
        assert "expected" in str(error)
    except RuntimeError as error:
        # int[2] itself expands one integer and refuses three, before our checks
        assert "int[2]" in str(error) or "size 2" in str(error) or "SymInt" in str(error), error
    else:
        assert judge("grouped_conv2d_affine_act", args, results).passed
