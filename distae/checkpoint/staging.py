"""Host memory that a save copies into while training waits."""

import weakref

import torch
from torch import Tensor

ALIGNMENT = 64


class Staging:
    """Empty contiguous tensors on the host, `buffers`, with the shapes and types of `tensors`, in one block.

    Page-locked if one of those is on a GPU; not by `pin_memory`: torch rounds each such allocation up to a power of two.
    """

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        starts, end = {}, 0
        for name, t in tensors.items():
            starts[name], end = end, end + -(-t.nbytes // ALIGNMENT) * ALIGNMENT
        block = torch.empty(end, dtype=torch.uint8)
        if end and any(t.is_cuda for t in tensors.values()):
            cuda = torch.cuda.cudart()  # type: ignore[no-untyped-call]
            torch.cuda.check_error(int(cuda.cudaHostRegister(block.data_ptr(), end, 0)))
            weakref.finalize(self, cuda.cudaHostUnregister, block.data_ptr()).atexit = False
        self.buffers = {k: block[starts[k] : starts[k] + t.nbytes].view(t.dtype).view(t.shape) for k, t in tensors.items()}

    def fits(self, tensors: dict[str, Tensor]) -> bool:
        here, there = ([(k, t.shape, t.dtype) for k, t in each.items()] for each in (self.buffers, tensors))
        return here == there
