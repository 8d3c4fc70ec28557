"""Times a training step of PyTorch: torchvision's ResNet-50, or the original DResNet.

Run by `benchmarks.gpu` in a process of its own, with what is asked as JSON; prints
{"seconds": [...], "memory_bytes": ...}. ResNet-50 is trained as its users train it at
speed: channels last, autocast to bfloat16 and torch.compile; the original DResNet as it
was published, eager, under autocast.
"""

import json
import sys
import time
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from benchmarks import pytorch_original

CLASSES = 1000


def main(asked: dict[str, Any]) -> None:
    """Measures and prints."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    if asked["network"] == "resnet50":
        import torchvision

        model: Any = torchvision.models.resnet50(num_classes=CLASSES)
        model = model.to(device, memory_format=torch.channels_last)
        compiled = torch.compile(model) if device.type == "cuda" else model
    else:
        connected = asked["network"].startswith("d")
        model = compiled = pytorch_original.DResNet(
            CLASSES, asked["width"], connected=connected
        ).to(device, memory_format=torch.channels_last)
    images = torch.randn(asked["batch"], 3, asked["side"], asked["side"], device=device)
    images = images.to(memory_format=torch.channels_last)
    labels = torch.randint(CLASSES, (asked["batch"],), device=device)
    step = _step(model, compiled, images, labels)
    seconds: list[float] = []
    for _ in range(3):
        step()
    while len(seconds) < 3 or sum(seconds) < asked["seconds"]:
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    used = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    print(json.dumps({"seconds": seconds, "memory_bytes": used}))


def _step(model: nn.Module, compiled: Any, images: Any, labels: Any) -> Any:
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4
    )

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(images.device.type, torch.bfloat16):
            loss = functional.cross_entropy(compiled(images), labels)
        loss.backward()
        optimizer.step()
        return loss.item()  # Waits for the device.

    return step


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
