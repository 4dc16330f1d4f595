"""Offer Triton a backend named ``cpu``, so that vLLM's newer model runner runs where there is no GPU.

On ``PYTHONPATH`` this is imported at the start of every process of a test. Together with
``TRITON_INTERPRET=1`` Triton interprets its kernels and never asks the backend for more than whether it is
there.
"""

from typing import Any

import torch
import triton.backends
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase


class InterpretedDriver(DriverBase):
    @classmethod
    def is_active(cls) -> Any:
        return True

    def map_python_to_cpp_type(self, ty: str) -> str:
        raise NotImplementedError

    def get_current_target(self) -> Any:
        return GPUTarget("cpu", 0, 0)

    def get_active_torch_device(self) -> Any:
        return torch.device("cpu")

    def get_benchmarker(self) -> Any:
        raise NotImplementedError


triton.backends.backends["cpu"] = triton.backends.Backend(
    triton.backends.backends["nvidia"].compiler, InterpretedDriver
)
