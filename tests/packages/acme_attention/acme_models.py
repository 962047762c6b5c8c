"""The model library that the third party's adapter is for: one attention over the squares of a small picture."""

import torch
from torch import Tensor, nn

SIDE_PX = 4


class SquareNet(nn.Module):
    """Attends over the 4 px squares of a gray picture whose sides are multiples of that."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, 8, SIDE_PX, stride=SIDE_PX)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        squares = self.embed(x).flatten(2).transpose(1, 2)
        mixed, _ = self.attention(squares, squares, squares, need_weights=False)
        return (squares + mixed).mean(dim=1)


class DeepSquareNet(SquareNet):
    """A more derived class, for adapters that claim it alone."""


def create_model(name: str) -> SquareNet:
    """Return a model with the same random weights every time."""
    torch.manual_seed(0)
    return {"square_net": SquareNet, "deep_square_net": DeepSquareNet}[name]().eval()
