"""The L1-regression head of OpenVLA-OFT (Kim, Finn, Liang 2025, section IV-B): a residual MLP per action token.

x = relu(fc1(LN(x)));  x = x + relu(linear(LN(x)))  (blocks times);  fc2(LN(x))
"""

from __future__ import annotations

from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """x + relu(linear(LN(x))), (…, width) -> (…, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ffn = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """One block."""
        return x + self.ffn(x)


class MLPResNet(nn.Module):
    """(…, inputs) -> (…, outputs).

    Args:
        inputs: Width of the hidden states (and of what is joined to them).
        width: Width inside; OpenVLA-OFT takes twice the hidden size.
        outputs: Action dimension.
        blocks: Residual blocks.
    """

    def __init__(self, inputs: int, width: int, outputs: int, blocks: int = 2) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(inputs)
        self.fc1 = nn.Linear(inputs, width)
        self.relu = nn.ReLU()
        self.mlp_resnet_blocks = nn.ModuleList([ResidualBlock(width) for _ in range(blocks)])
        self.layer_norm2 = nn.LayerNorm(width)
        self.fc2 = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Per position, independently."""
        x = self.relu(self.fc1(self.layer_norm1(x)))
        for block in self.mlp_resnet_blocks:
            x = block(x)
        return self.fc2(self.layer_norm2(x))
