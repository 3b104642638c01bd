"""Errors of a computation: memory that ran out, a device that is broken, and whatever else."""

from __future__ import annotations

import pytest
import torch

from petl_ray.models.faults import is_device_fault, is_out_of_memory

MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory"),
    MemoryError(),
    RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("could not create a primitive"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]
DEVICE = [
    torch.AcceleratorError("CUDA error: device-side assert triggered"),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
]
NEITHER = [
    RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    ValueError("out of memory"),
    IndexError("CUDA error"),
]


@pytest.mark.parametrize("error", [*MEMORY, *DEVICE, *NEITHER], ids=str)
def test_each_is_told_from_the_others(error: Exception) -> None:
    assert (is_out_of_memory(error), is_device_fault(error)) == (error in MEMORY, error in DEVICE)
