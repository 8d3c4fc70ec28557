"""The original DResNet in PyTorch: each edge convolved, then pooled, then gated.

Written from its published description, for comparison only: the blocks of
`dresnet18_seed` and `resnet18_seed`, eager, trained by SGD as its users train it.
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional


class Block(nn.Module):
    """Two 3x3 convolutions with norms, and a shortcut."""

    def __init__(
        self, channels: int, out_channels: int, stride: int, first: bool
    ) -> None:
        """A block of the given channels; the first block's shortcut is the identity."""
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out_channels, 3, stride, 1)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.shortcut = (
            nn.Identity()
            if first
            else nn.Sequential(
                nn.Conv2d(channels, out_channels, 1, stride),
                nn.BatchNorm2d(out_channels),
            )
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, channels, height, width] to the block's output."""
        y = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class DResNet(nn.Module):
    """18 layers; without connections it is the ResNet."""

    def __init__(self, num_classes: int, width: int, *, connected: bool) -> None:
        """Widths double in each of 4 stages of 2 blocks."""
        super().__init__()
        channels = [width, *(width * 2**stage for stage in (0, 0, 1, 1, 2, 2, 3, 3))]
        strides = (1, 1, 2, 1, 2, 1, 2, 1)
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, 1, 1), nn.BatchNorm2d(width), nn.MaxPool2d(3, 2, 1)
        )
        self.blocks = nn.ModuleList(
            Block(channels[i], channels[i + 1], stride, first=i == 0)
            for i, stride in enumerate(strides)
        )
        self.classifier = nn.Linear(channels[-1], num_classes)
        self.projections = nn.ModuleDict()
        self.weights = nn.ParameterDict()
        for i in range(3, len(strides) + 1) if connected else ():
            self.weights[f"{i}"] = nn.Parameter(torch.zeros(i - 2))
            for k in range(1, i - 1):
                self.projections[f"{i}_{k}"] = nn.Conv2d(
                    channels[k], channels[i - 1], 1
                )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[batch, 3, height, width] to logits [batch, classes]."""
        outputs = [self.stem(images)]
        for i, block in enumerate(self.blocks, start=1):
            x = outputs[-1]
            if f"{i}" in self.weights:
                gates = torch.sigmoid(self.weights[f"{i}"])
                for k in range(1, i - 1):
                    projected = self.projections[f"{i}_{k}"](outputs[k])
                    pooled = functional.adaptive_avg_pool2d(projected, x.shape[2:])
                    x = x + gates[k - 1] * pooled
            outputs.append(block(x))
        return self.classifier(outputs[-1].mean(dim=(2, 3)))


def training_step(
    *,
    connected: bool,
    channels_last: bool,
    batch: int,
    side: int,
    classes: int,
    width: int,
) -> Callable[[], object]:
    """A function that trains one step, on the same random batch each time.

    Args:
      connected: whether there are connections.
      channels_last: the layout of images in memory; else PyTorch's default.
      batch: images.
      side: of the images, pixels.
      classes: of the images.
      width: channels of the first stage.
    """
    torch.manual_seed(0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = DResNet(classes, width, connected=connected).to(memory_format=layout)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    images = torch.randn(batch, 3, side, side).to(memory_format=layout)
    labels = torch.randint(classes, (batch,))

    def step() -> float:
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step
