"""What the errors of a computation mean: that memory ran out, or that the device itself is at fault. GPUs and CPUs."""

from __future__ import annotations

import torch

# oneDNN, which computes on CPUs, says no more than that a primitive could not be made when it cannot allocate.
_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "could not create a primitive",
    "cublas_status_alloc_failed",
)
# Of those who do not say so by their type; a shape or a type that a library does not take is no fault of the device.
_DEVICE = (
    "device-side assert",
    "illegal memory access",
    "illegal instruction",
    "unspecified launch failure",
    "uncorrectable ecc error",
    "launch timed out",
    "cublas_status_execution_failed",
    "cudnn_status_execution_failed",
    "nccl error",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that an allocation failed."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _MEMORY)


def is_device_fault(error: BaseException) -> bool:
    """Whether an error says that the device can compute no more in this process, whoever's work it was at."""
    if is_out_of_memory(error):
        return False
    named = isinstance(error, torch.AcceleratorError)
    return named or (isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _DEVICE))
