"""The running statistics of BatchNorm, in place: an op, so that torch.func and compilers see one mutation."""

from .. import batch_norm
from .._ops import define_mutation

update_running_stats = define_mutation(
    "update_running_stats",
    "Tensor(a!) running_mean, Tensor(b!) running_var, Tensor mean, Tensor var, SymInt count, float momentum",
    batch_norm.update_running_stats,
)
