"""Muon for the matrices, AdamW for the rest, and training state that survives being killed.

Both parts of the lab model (train_vq.py, train_lm.py) train with this. Muon (Jordan 2024) is torch's own; all this
file adds is to show it convolution kernels as matrices.
"""

from __future__ import annotations

import functools
import math
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from milr.disk import sync, sync_folder


class MuonAndAdamW:
    """One optimizer of two: `matrices` (2-D or 4-D parameters) move by Muon, `others` by AdamW.

    Learning rates are the peak values; `step(scale)` multiplies both by `scale` (the schedule).
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        others: Iterable[nn.Parameter],
        muon_rate: float,
        adam_rate: float,
        clip: float = 1.0,
    ) -> None:
        self.matrices, self.others = list(matrices), list(others)
        # A kernel [out, in, h, w] shares its memory with the matrix [out, in * h * w] that Muon moves.
        self.views = [nn.Parameter(p.detach().view(p.shape[0], -1)) for p in self.matrices]
        self.muon = torch.optim.Muon(self.views, lr=muon_rate, momentum=0.95, weight_decay=0.01)
        self.adam = torch.optim.AdamW(self.others, lr=adam_rate, betas=(0.9, 0.95), weight_decay=0.0)
        self.rates = (muon_rate, adam_rate)
        self.clip = clip

    @property
    def parameters(self) -> list[nn.Parameter]:
        return self.matrices + self.others

    def step(self, scale: float) -> None:
        torch.nn.utils.clip_grad_norm_([p for p in self.parameters if p.grad is not None], self.clip)
        for optimizer, rate in zip((self.muon, self.adam), self.rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * scale
        for view, parameter in zip(self.views, self.matrices, strict=True):
            view.grad = None if parameter.grad is None else parameter.grad.view_as(view)
        self.muon.step()
        self.adam.step()
        for parameter in self.parameters:
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        return {"muon": self.muon.state_dict(), "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])


class MovingAverage:
    """An exponential moving average of parameters, warmed up so that the start is forgotten."""

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float = 0.99) -> None:
        self.parameters = list(parameters)
        self.average = [p.detach().clone() for p in self.parameters]
        self.decay = decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        keep = min(self.decay, (step + 1) / (step + 10))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - keep)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the parameters with their average (call again to exchange back)."""
        for parameter, mean in zip(self.parameters, self.average, strict=True):
            held = parameter.detach().clone()
            parameter.copy_(mean)
            mean.copy_(held)


def schedule(step: int, steps: int, warm_up: int = 50, hold: float = 0.45) -> float:
    """Learning-rate factor: linear warm-up, flat, then linear to 2 % over the last (1 - hold) of the steps."""
    rise = min(1.0, (step + 1) / warm_up)
    fall = 1.0 if step < hold * steps else max(0.02, (steps - step) / ((1 - hold) * steps))
    return rise * fall


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write a training state so that a kill or a power cut at any moment leaves the old one or the new one."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as stream:
        torch.save(state, stream)
        stream.flush()
        sync(stream.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


def load_state(path: Path) -> dict[str, Any] | None:
    """The last saved state, or None. Tensors and plain values only: nothing in the file is executed."""
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    return state


def resume(path: Path, model: nn.Module, optimizer: MuonAndAdamW, average: MovingAverage) -> dict[str, Any] | None:
    """Put model, optimizer and average back to where they were saved; the state, or None where there is none."""
    if state := load_state(path):
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        for mean, saved in zip(average.average, state["average"], strict=True):
            mean.copy_(saved)
    return state


def autocast(device: torch.device) -> torch.autocast:
    """bf16 where it is faster: on GPUs always; on a CPU only if a quick try says so (some are slower with it)."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda" or _cpu_prefers_bf16())


@functools.cache
def _cpu_prefers_bf16() -> bool:
    def seconds(dtype: torch.dtype) -> float:
        left, right = torch.ones(4096, 256, dtype=dtype), torch.ones(256, 704, dtype=dtype)
        best = math.inf
        for _ in range(5):
            began = time.perf_counter()
            left @ right
            best = min(best, time.perf_counter() - began)
        return best

    return seconds(torch.bfloat16) < seconds(torch.float32)
