"""Offer Triton a backend named ``cpu``, so that vLLM's newer model runner runs where there is no GPU.

On ``PYTHONPATH`` this is imported at the start of every process of a test. Together with
``TRITON_INTERPRET=1`` Triton interprets its kernels and never asks the backend for more than whether it is
there.
"""

import triton.backends
from triton.backends.driver import DriverBase


class InterpretedDriver(DriverBase):
    @classmethod
    def is_active(cls):
        return True

    def map_python_to_cpp_type(self, ty):
        raise NotImplementedError

    def get_current_target(self):
        return triton.backends.compiler.GPUTarget("cpu", 0, 0)

    def get_active_torch_device(self):
        import torch

        return torch.device("cpu")

    def get_benchmarker(self):
        raise NotImplementedError

    def get_current_device(self):
        return 0


triton.backends.backends["cpu"] = triton.backends.Backend(
    triton.backends.backends["nvidia"].compiler, InterpretedDriver
)
