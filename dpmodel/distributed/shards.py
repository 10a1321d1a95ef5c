"""The coordinates of a sharded network that this rank owns, and norms over the coordinates of all ranks."""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard

from mechanisms.clipping import ClipMechanism
from mechanisms.engines.parameters import FlatLayout, trainable_parameters
from monitors.errors import UnsupportedModuleError


class Shards:
    """The trainable parameters of a network as this rank holds them: each coordinate belongs to exactly one rank.

    Args:
        network: A network after ``fully_shard``.

    Raises:
        UnsupportedModuleError: A parameter is not divided among all ranks of the default group.
    """

    def __init__(self, network: nn.Module) -> None:
        parameters = trainable_parameters(network)
        for name, parameter in parameters.items():
            _require_divided(name, parameter)
        self.parameters = {name: cast("DTensor", parameter) for name, parameter in parameters.items()}
        self.shapes = {name: tuple(parameter.shape) for name, parameter in self.parameters.items()}
        #: Positions of this rank's coordinates, without the padding of uneven shards.
        self.layout = FlatLayout.of_parameters({name: value.to_local() for name, value in self.parameters.items()})
        self.size = sum(math.prod(shape) for shape in self.shapes.values())
        owned = self._of_all_ranks(torch.tensor(self.layout.size, device=self.layout.device))
        if int(owned.sum()) != self.size:
            raise UnsupportedModuleError(
                f"the ranks hold {int(owned.sum())} coordinates of {self.size}; each must belong to exactly one rank"
            )

    def zeros(self) -> Tensor:
        """A vector of this rank's coordinates."""
        return self.layout.zeros(self.layout.size)

    def blocks(self, clip: ClipMechanism) -> int:
        """Number of blocks that are clipped separately."""
        return max(clip.blocks(self.layout.names)) + 1

    def clear(self) -> None:
        """Remove all gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def norms(self, clip: ClipMechanism) -> Tensor:
        """Norms of the gradient in ``grad``, shape (1, blocks), over the coordinates of all ranks, equal on each."""
        squared = torch.zeros(self.blocks(clip), dtype=torch.float64, device=self.layout.device)
        for block, part in zip(clip.blocks(self.layout.names), self._gradients(), strict=True):
            if part is not None:
                squared[block] += torch.linalg.vector_norm(part, dtype=torch.float64).square()
        # Added up in the order of the ranks, so that all of them compute the same factor to the bit.
        return self._of_all_ranks(squared).sum(dim=0, keepdim=True).sqrt().to(self.layout.dtype)

    def add_to(self, total: Tensor, clip: ClipMechanism, factors: Tensor) -> None:
        """Add this rank's shard of the gradient in ``grad`` to ``total``, times the factors, shape (1, blocks)."""
        parts = zip(clip.blocks(self.layout.names), self._gradients(), self.layout.views(total), strict=True)
        for block, part, sum_of_part in parts:
            if part is not None:
                sum_of_part.add_(part.to(total.dtype) * factors[0, block])

    def set_gradients(self, flat: Tensor) -> None:
        """Set ``grad`` of every parameter from a vector of this rank's coordinates."""
        for parameter, part in zip(self.parameters.values(), self.layout.views(flat), strict=True):
            parameter.grad = DTensor.from_local(
                part.to(parameter.dtype),
                parameter.device_mesh,
                parameter.placements,
                run_check=False,
                shape=parameter.shape,
                stride=parameter.stride(),
            )

    def _gradients(self) -> list[Tensor | None]:
        found = (parameter.grad for parameter in self.parameters.values())
        return [None if gradient is None else cast("DTensor", gradient).to_local() for gradient in found]

    def _of_all_ranks(self, own: Tensor) -> Tensor:
        """``own`` of each rank, shape (ranks, ...)."""
        parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, own)
        return torch.stack(parts)


def _require_divided(name: str, parameter: nn.Parameter) -> None:
    size = dist.get_world_size()
    if not isinstance(parameter, DTensor):
        raise UnsupportedModuleError(
            f"parameter {name!r} is not sharded: each rank would add its own noise to the whole of it. Call "
            "fully_shard on the whole network, without ignored_params"
        )
    mesh, placements = parameter.device_mesh, parameter.placements
    if mesh.ndim != 1 or mesh.size() != size or not isinstance(placements[0], Shard):
        raise UnsupportedModuleError(
            f"parameter {name!r} is placed as {placements} on {mesh}; it must be sharded over all {size} ranks of the "
            "default process group, by fully_shard with a mesh of one dimension"
        )
