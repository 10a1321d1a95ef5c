"""A stand-in for CUDA graphs on a CPU: operators are recorded, and replayed without Python on the same memory."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

#: Operators that read a value on the host, or copy from it, which a GPU refuses while it records.
READS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default}


class KernelTape(TorchDispatchMode):
    """Records the operators that run inside. Like a CUDA graph, a replay runs no Python of the recorded function.

    Numbers that were read from Python are constants of the tape. Unlike CUDA graphs, recording runs the operators.

    Raises:
        RuntimeError: An operator reads a value of a tensor.
    """

    def __init__(self):
        super().__init__()
        self._played = []
        self._drawn = []  # seeds that torch draws on the host

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if operator in READS and not any(args[0].data_ptr() == drawn.data_ptr() for drawn in self._drawn):
            raise RuntimeError("operation not permitted when stream is capturing")
        found = operator(*args, **(kwargs or {}))
        if operator.overloadpacket is torch.ops.aten.randint:
            self._drawn.append(found)
        self._played.append((operator, args, kwargs or {}, found))
        return found

    def replay(self):
        for operator, args, kwargs, found in self._played:
            if operator.is_view:
                continue  # the view is still one of the memory that it was made of
            given = {id(value) for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)}
            again = operator(*args, **kwargs)
            for value, new in zip(tree_leaves(found), tree_leaves(again), strict=True):
                if isinstance(value, torch.Tensor) and id(value) not in given:
                    value.detach().copy_(new.detach())


def on_tape():
    """Records functions on tapes; takes the place of ``as_cuda_graphs``."""

    def record(function):
        with torch.no_grad(), KernelTape() as tape:
            function()

        def replay():
            with torch.no_grad():
                tape.replay()

        return replay

    return record
