"""A small model in plain torch that the tests of watch look at, and seeded tensors."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def leaf(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return randn(*shape, seed=seed, dtype=dtype).requires_grad_()


class Block(nn.Module):
    """What a decoder calls, in plain torch."""

    def __init__(self, vocabulary: int = 17, width: int = 8) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(vocabulary, width), nn.LayerNorm(width)
        self.project, self.head = nn.Linear(width, 3 * width), nn.Linear(width, vocabulary)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.table(ids)
        q, k, v = self.project(self.norm(h)).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        h = h + F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(-2)
        return F.cross_entropy(self.head(h)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def block(dtype: torch.dtype = torch.float32) -> tuple[Block, Tensor]:
    torch.manual_seed(0)
    return Block().to(dtype), (17 * torch.rand(2, 30) ** 3).long()
