"""Trajectory matching on larger pictures, experts to evaluation: the presets of 128 and of 64 pixels on real slices, lengths cut down."""

import json
from pathlib import Path

import numpy as np
import pytest

from realdata.__main__ import main
from realdata.artefact import read_set

SLICES = {
    "imagenette": ("imagenette-mini", "imagenette", 5, (3, 128, 128)),
    "tiny-imagenet": ("tiny-imagenet-10/tiny-imagenet-200", "folders:3x64x64:10", 4, (3, 64, 64)),
}
SHARED = "--network.width 4 --threads 1"
EXPERTS = "--count 2 --epochs 3 --quality.measured 1 --quality.snapshots 2 --quality.images 20"
LOOP = "--trajectory.experts 2 --trajectory.high 2 --horizon 3 --outer-steps 2 --trajectory.curve-steps 2"
CURVE = "--curve-every 2 --curve-networks 1 --curve-images 40"


@pytest.mark.slow
@pytest.mark.parametrize("method", ["mtt", "ftd"])
@pytest.mark.parametrize("cell", SLICES)
def test_a_preset_runs_from_experts_to_evaluation(data_root: Path, tmp_path: Path, cell: str, method: str):
    folder, name, depth, shape = SLICES[cell]
    root, preset = data_root / folder, f"{method}-{cell}-ipc1"
    if not root.is_dir():
        pytest.skip(f"no {folder} under {data_root}")
    shared = ["--preset", preset, "--dataset", name, "--root", str(root), *SHARED.split()]
    store, run = tmp_path / "store", tmp_path / "run"
    main(["experts", *shared, "--store", str(store), *EXPERTS.split()])
    main(["distill", *shared, "--experts", str(store), "--out", str(run), *LOOP.split(), *CURVE.split()])
    main(["evaluate", str(run), "--root", str(root), *["--baselines", "random", "--seeds", "1", "--lengths", "3", "--threads", "1"]])
    main(["trajectories", str(run), "--experts", str(store), "--root", str(root), "--out", str(tmp_path / "report"), "--threads", "1"])
    distilled = read_set(run)
    assert distilled.images.shape == (10, *shape)
    assert np.isfinite(distilled.images).all()
    assert (distilled.config.network.depth, distilled.images_ema is not None) == (depth, method == "ftd")
    found = json.loads((run / "evaluation.json").read_text())["results"]
    assert {one["name"] for one in found} >= {"distilled", "random"}
    assert "## Errors along the experts" in (tmp_path / "report" / "report.md").read_text()
