"""What a machine can do at its best, against which any other speed is a share; and what kind of machine it is."""

from __future__ import annotations

import math
import os
import platform
import time
from dataclasses import dataclass

import torch

from refusalscope.errors import MeasurementError
from refusalscope.reprs import Shown

SHARE, SHARE_OF_AN_ACCELERATOR = 0.5, 0.2
SECONDS = 0.5


@dataclass(frozen=True, repr=False)
class Machine(Shown):
    """A rate in floating-point operations per second, and the share of it that a measurement is taken to reach.

    Attributes:
        flops_per_second: of a dense matrix product; a multiply and an add count as two.
        share: above 0 and at most 1. On one core of a CPU selection reached 0.2 with a million parameters and 0.8 with
            half a billion; on accelerators a fifth is an assumption.
        how: where the rate comes from, in words.
    """

    flops_per_second: float
    share: float = SHARE
    how: str = "given"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.flops_per_second) and self.flops_per_second > 0 and 0 < self.share <= 1):
            raise MeasurementError(
                f"A machine needs a positive rate and a share of it in (0, 1]; got {self.flops_per_second} and "
                f"{self.share}."
            )

    def seconds(self, flops: float) -> float:
        """Returns how long so many operations take at that share of the rate."""
        return flops / (self.flops_per_second * self.share)


@dataclass(frozen=True)
class MachineClass:
    """What kind of machine this is, in words that many machines share: nothing names one machine or its user.

    Attributes:
        cores: logical ones.
        threads: how many torch uses.
        device: ``cpu``, or the model of the accelerator that torch sees.
    """

    cores: int
    threads: int
    architecture: str
    system: str
    device: str


def machine_class() -> MachineClass:
    """Returns the kind of the machine this runs on."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    facts = (os.cpu_count() or 1, torch.get_num_threads(), platform.machine(), platform.system(), device)
    return MachineClass(*facts)


def measured_machine(
    *, device: str = "cpu", dtype: torch.dtype = torch.float32, share: float | None = None, size: int = 1024
) -> Machine:
    """Returns this machine as measured: the best rate of a square matrix product, repeated for half a second.

    The best and not the mean, because a peak is asked for; on a busy machine it is still too low.

    Raises:
        MeasurementError: for a device this machine does not have.
    """
    try:
        left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    except (RuntimeError, AssertionError) as error:
        raise MeasurementError(f"Device {device!r} cannot be used here: {str(error).splitlines()[0]}") from error
    times, began = [], time.perf_counter()
    while len(times) < 3 or time.perf_counter() - began < SECONDS:
        times.append(_timed(left, right))
    rate = 2.0 * size**3 / min(times)
    threads = f", {torch.get_num_threads()} threads" if left.device.type == "cpu" else ""
    name = str(dtype).removeprefix("torch.")
    share = share or (SHARE if left.device.type == "cpu" else SHARE_OF_AN_ACCELERATOR)
    return Machine(rate, share, f"measured on {device}{threads}: a {name} product of {size} × {size} matrices")


def bfloat16_speedup(*, device: str = "cpu", size: int = 512) -> float:
    """Returns how many times as fast as a float32 product a bfloat16 one is here, both of ``size``² matrices.

    Above 1 where the processor has units for it; far below where it has to emulate them.
    """
    pair = [torch.randn(size, size, device=device) for _ in range(2)]
    times = []
    for dtype in (torch.float32, torch.bfloat16):
        left, right = (matrix.to(dtype) for matrix in pair)
        times.append(min(_timed(left, right) for _ in range(3)))
    return times[0] / times[1]


def _timed(left: torch.Tensor, right: torch.Tensor) -> float:
    repeats = 20 if left.is_cuda else 1  # one product on a GPU is shorter than the clock's and the queue's grain
    _finish(left)
    began = time.perf_counter()
    for _ in range(repeats):
        torch.mm(left, right)
    _finish(left)
    return (time.perf_counter() - began) / repeats


def _finish(tensor: torch.Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
