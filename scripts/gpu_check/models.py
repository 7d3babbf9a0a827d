"""Training steps of ResNet-50 and ResNeXt-50, as they are and swapped, in bfloat16 autocast, channels last.

Eager and compiled; of each eager step also where the GPU's time goes. The tax is ResNeXt-50's step over ResNet-50's.
"""

import time
from collections import Counter

import torch
from torch.profiler import ProfilerActivity, profile
from torchvision.models.resnet import Bottleneck, ResNet

import resnext_kernels as rk
from resnext_kernels.testing import timing

from .ours import names

LAYERS = (3, 4, 6, 3)
# Model -> groups and the width of one in the first stage.
MODELS = {"resnet50": (1, 64), "resnext50": (32, 4)}
BATCH, SIZE = 128, 224
COMPILE_S = 60.0
TOP = 15  # of the kernels in a profile
# The order in which compiled ones are wanted while there is time.
COMPILED = ("resnext50", "resnext50 swapped", "resnet50")


class Models:
    def __init__(self, stage):
        self.stage, self.dry, self.device = stage, stage.dry, stage.device
        self.backend = f"{names(stage.dry)[0]},aten"
        n, size = (2, 32) if stage.dry else (BATCH, SIZE)
        torch.manual_seed(0)
        self.x = torch.randn(n, 3, size, size, device=self.device).to(memory_format=torch.channels_last)
        self.labels = torch.randint(10, (n,), device=self.device)
        self.steps, self.swapped = {}, {}

    def _build(self, name: str):
        model_name, _, swapped = name.partition(" ")
        groups, width = MODELS[model_name]
        torch.manual_seed(0)
        model = ResNet(Bottleneck, (1, 1, 1, 1) if self.dry else LAYERS, groups=groups, width_per_group=width)
        if self.dry:
            model.layer2 = model.layer3 = model.layer4 = torch.nn.Identity()
            model.fc = torch.nn.Linear(256, 10)
        model = model.to(self.device, memory_format=torch.channels_last).train()
        if swapped:
            before = [type(module) for module in model.modules()]
            rk.swap(model)
            changed = sum(type(module) is not was for module, was in zip(model.modules(), before, strict=True))
            self.swapped[name] = changed
        return model

    def step(self, name: str, compiled: bool = False):
        """A training step as a function: forward, backward and SGD with momentum."""
        model = self._build(name)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
        forward = model
        if compiled:
            torch.compiler.reset()
            forward = torch.compile(model, dynamic=False, backend="eager" if self.dry else "inductor")

        def run():
            with rk.use_backend(self.backend if name in self.swapped else "aten"):
                with torch.autocast(self.device, dtype=torch.bfloat16):
                    loss = torch.nn.functional.cross_entropy(forward(self.x), self.labels)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
            return loss

        return run

    def eager(self) -> list[dict]:
        """All eager steps, interleaved."""
        names = [name for model in MODELS for name in (model, f"{model} swapped")]
        self.steps = {name: self.step(name) for name in names}
        # Swapping a model without grouped convolutions may change nothing.
        for name, changed in self.swapped.items():
            if not changed:
                del self.steps[name]
                self.stage.skip(name, "swap changes nothing in it")
        ran = {name: self._ran(step) for name, step in self.steps.items()}
        return [row | {"ran": ran[row["model"]]} for row in self._times("eager", self.steps)]

    def _ran(self, step) -> dict[str, int]:
        with rk.backends.record() as record:
            step()
        return dict(Counter(f"{op} on {name}" for op, _, name in record))

    def _times(self, mode, steps) -> list[dict]:
        options = {"rounds": 1} if self.dry else {"rounds": 15, "budget_s": 6.0}
        for step in steps.values():
            for _ in range(1 if self.dry else 3):
                loss = step()
            if not torch.isfinite(loss):
                raise ArithmeticError("a loss is not finite")
        times = timing.interleave(steps, self.device, **options)
        first = times[next(iter(times))].median_ms
        return [
            {"model": name, "mode": mode, "batch": len(self.x), "ms": each.median_ms, "p20_ms": each.p20_ms,
             "p80_ms": each.p80_ms, "over_first": each.median_ms / first}
            for name, each in times.items()
        ]  # fmt: skip

    def profiled(self, name: str) -> dict:
        """Milliseconds of one step in each of the kernels that take most."""
        # After a failure or a fresh start of the process there is no step yet.
        step = self.steps.get(name) or self.step(name)
        step()
        activity = ProfilerActivity.CPU if self.dry else ProfilerActivity.CUDA
        steps = 1 if self.dry else 3
        with profile(activities=[activity]) as profiler:
            for _ in range(steps):
                step()
            self.stage.synchronize()
        spent = Counter()
        for event in profiler.key_averages():
            spent[event.key[:120]] += (event.self_cpu_time_total if self.dry else event.self_device_time_total) / steps
        kernels = {key: us / 1e3 for key, us in spent.most_common(TOP)}
        return {"model": name, "mode": "profile", "ms": sum(spent.values()) / 1e3, "kernels": kernels}

    def compiled(self, name: str) -> list[dict]:
        """Beside its eager step of the same minute."""
        start = time.perf_counter()
        compiled = self.step(name, compiled=True)
        compiled()
        self.stage.synchronize()
        seconds = time.perf_counter() - start
        steps = {"eager": self.steps.get(name) or self.step(name), "compiled": compiled}
        rows = self._times("compiled", steps)
        return [row | {"model": name, "mode": mode, "compile_s": seconds, "over_first": None}
                for row, mode in zip(rows, ("eager beside compiled", "compiled"), strict=True)]  # fmt: skip


def main(stage) -> str:
    torch.backends.cudnn.benchmark = True
    models = Models(stage)
    stage.each({"eager": models.eager}, 10)
    profiles = models.steps or {name: None for name in MODELS}
    stage.each({f"profile {name}": lambda name=name: models.profiled(name) for name in profiles}, 5)
    stage.each(
        {f"compiled {name}": lambda name=name: models.compiled(name) for name in COMPILED},
        1 if stage.dry else COMPILE_S,
    )
    return _headline(stage.rows)


def _headline(rows) -> str:
    eager = {row["model"]: row["ms"] for row in rows if row["mode"] == "eager"}
    compiled = {row["model"]: row["ms"] for row in rows if row["mode"] == "compiled"}
    parts = []
    for mode, times in (("eager", eager), ("compiled", compiled)):
        if times:
            parts.append(f"{mode} ms " + ", ".join(f"{name} {ms:.1f}" for name, ms in times.items()))
    for name in ("resnext50", "resnext50 swapped"):
        if name in eager and "resnet50" in eager:
            parts.append(f"tax {name.partition(' ')[2] or 'unswapped'} {eager[name] / eager['resnet50']:.2f}")
    return "; ".join(parts)
