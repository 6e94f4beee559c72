"""A plain PyTorch model, with no language in it: a small CNN learns whether the bars of an image lie or stand.

    python examples/plain_pytorch.py --steps 800    # about 15 seconds

The images are made here. The loop is the one of any torch optimizer, without `backward`; the run is a journal of a few
kilobytes, and an untrained copy of the model that is fed with it becomes the trained one.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

import zotune
from zotune.journal import Journal

SIZE, TRAIN_IMAGES, TEST_IMAGES, BATCH = 12, 512, 200, 64


def bars(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images (count, 1, SIZE, SIZE) with two bars under noise, and whether they stand, (count,)."""
    images = torch.randn(count, 1, SIZE, SIZE, generator=generator)
    stand = torch.randint(2, (count,), generator=generator)
    for image, upright in zip(images, stand, strict=True):
        for place in torch.randperm(SIZE, generator=generator)[:2]:
            image[0, :, place] += 2.0 * upright
            image[0, place, :] += 2.0 * (1 - upright)
    return images, stand


def objective(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The loss of each image, (B,)."""
    return nn.functional.cross_entropy(model(batch["images"]), batch["stand"], reduction="none")


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, stand: Tensor) -> float:
    """The share that is right."""
    return float((model(images).argmax(1) == stand).float().mean())


def main() -> None:
    """Train, rebuild, and say the accuracy before and after."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output-dir", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    images, stand = bars(TRAIN_IMAGES, generator)
    held_out = bars(TEST_IMAGES, generator)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(8 * 4 * 4, 2),
    )  # fmt: skip
    untrained, before = copy.deepcopy(model), accuracy(model, *held_out)

    folder = options.output_dir or Path(tempfile.mkdtemp(prefix="zotune-cnn-"))
    folder.mkdir(parents=True, exist_ok=True)
    optimizer = zotune.MeZO(model, lr=1e-2, eps=1e-2, queries=4, seed=options.seed)
    with Journal.create(folder / "journal.zoj", optimizer.header()) as journal:
        optimizer.record = journal.append  # called before each update
        for _ in range(options.steps):
            rows = torch.randint(TRAIN_IMAGES, (BATCH,), generator=generator)
            optimizer.step(objective, {"images": images[rows], "stand": stand[rows]})
        size = journal.size

    replayed = zotune.replay(folder / "journal.zoj", untrained)
    same = replayed["weights_sha256"] == zotune.weights_sha256(dict(model.named_parameters()))
    result = {"steps": optimizer.steps, "accuracy_before": before, "accuracy_after": accuracy(model, *held_out)}
    print(json.dumps(result | {"journal_bytes": size, "rebuilt_alike": same}))


if __name__ == "__main__":
    main()
