"""Two arrays as a data set: bytes and integer labels, named by a description of their layout, never by code."""

from pathlib import Path

import numpy as np

from realdata import data

NAME, root = "arrays:1x8x8:2", Path("my-data")  # FORMAT:CHANNELSxHEIGHTxWIDTH:CLASSES
rng = np.random.default_rng(0)
root.mkdir(exist_ok=True)
for split, count in (("train", 400), ("test", 100)):
    labels = rng.integers(0, 2, count)
    images = rng.integers(0, 128, (count, 1, 8, 8), dtype=np.uint8)
    images[labels == 1, :, :4] += 100  # class 1 is bright above
    np.savez(root / f"{split}.npz", images=images, labels=labels)

assert not any(check.fault for check in data.verify(NAME, root))
print(len(data.load(NAME, root, "train")), "training images")
