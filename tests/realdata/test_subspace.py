"""`python -m realdata bridge` on pictures of a planted multi-index model, where the right answers are known, and as a user meets it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from realdata.__main__ import main
from realdata.artefact import DistilledSet, read_set, write_set
from realdata.checkpoint import CurvePoint
from realdata.config import DistillConfig
from realdata.networks import ConvNetConfig
from realdata.preprocess import fit_standardise
from realdata.subspace.coordinates import fit_whitening
from realdata.subspace.measure import BridgeConfig, make_scene, set_subspace, task_subspaces
from sims import two_phase
from sims.arrays import GaussianStream
from sims.lab.files import RunError
from sims.student import Student
from tests.strategies import generators
from theory import gradient_subspace
from theory.multi_index import MultiIndexModel, draw_model

SIDE = 8
D = SIDE * SIDE
SMALL = BridgeConfig(directions=D, neurons=200, blocks=20, draws=60, ipc=(1,), subsets=3, networks=2, held_out_images=200)


def pictures(x: np.ndarray) -> np.ndarray:
    """Gaussian inputs as bytes: a grey value of 32 is one standard deviation, so that 4 of them fit."""
    return np.clip(np.round(128 + 32 * x), 0, 255).astype(np.uint8).reshape(-1, 1, SIDE, SIDE)


def planted(link: str, r: int, n: int, seed: int) -> tuple[MultiIndexModel, np.ndarray, np.ndarray]:
    """(teacher, pictures, two classes: whether f* lies above its median)."""
    rng = np.random.default_rng(seed)
    model = draw_model(D, r, link, rng)
    x = rng.standard_normal((n, D))
    value = model.clean(x)
    return model, pictures(x), (value > np.median(value)).astype(np.int64)


def measured(link: str, r: int, n: int, seed: int):
    """(teacher, scene, task) of planted pictures."""
    model, images, labels = planted(link, r, n, seed)
    scene = make_scene(SMALL, fit_standardise(images).apply(images), labels, 2)
    return model, images, scene, task_subspaces(SMALL, scene)


def in_coordinates(scene, directions: np.ndarray) -> np.ndarray:
    """Orthonormal basis, in whitened coordinates, of what B spans in pixels: z = M^T (x - m), so f depends on M^-1 B."""
    return np.linalg.qr(np.linalg.solve(scene.whitening.maps, directions))[0]


@pytest.mark.parametrize(("link", "r"), [("quadratic", 2), ("cubic", 3), ("cross", 4)])
def test_the_planted_rank_lies_in_the_interval(link, r):
    model, _, scene, task = measured(link, r, 24_000, seed=r)
    rank, (low, high) = task["residual"].rank
    assert (rank, low <= r <= high) == (r, True)
    assert gradient_subspace.overlap(task["residual"].found.found, in_coordinates(scene, model.B)) > 0.9
    effective, (low, high) = task["residual"].effective_rank
    assert 1 < low <= effective <= min(high, r + 1e-9)


def test_pictures_whose_labels_are_noise_have_no_subspace():
    _, images, labels = planted("quadratic", 2, 8_000, seed=0)
    scene = make_scene(SMALL, fit_standardise(images).apply(images), np.random.default_rng(1).permutation(labels), 2)
    task = task_subspaces(SMALL, scene)
    assert task["residual"].found.rank == 0
    assert task["residual"].captured(np.eye(D)[:, :2]) is None
    assert task["residual"].angles(np.eye(D)[:, :2]) == ()


def distilled_points(model: MultiIndexModel, n: int, count: int, seed: int) -> np.ndarray:
    """Points that one matching step of the two-phase distillation makes from n samples: the fewer samples, the more off S*."""
    seeds = np.random.SeedSequence(seed).spawn(2)
    rng = np.random.default_rng(seeds[0])
    stream = GaussianStream(seeds[1], n, D)
    student = Student(D, 600)
    theta = student.init(rng)
    rows = two_phase.teacher_rows(model, stream, two_phase.fit_residual(model, stream), theta[1][:300])
    points = -two_phase.matching_gradient(student, [theta], rows, rng.standard_normal((count, D)), "inner_product")
    return points * np.sqrt(D / np.mean(np.sum(points**2, axis=1)))


def test_distilled_sets_are_ranked_by_their_true_overlap():
    """Sets distilled from 8 d to 512 d samples: overlap with the estimated subspace orders them as the overlap with S* does."""
    model, images, scene, task = measured("quadratic", 3, 24_000, seed=11)
    transform, planted_index = fit_standardise(images), in_coordinates(scene, model.B)
    estimated, true = [], []
    for n in (8 * D, 32 * D, 128 * D, 512 * D):
        points = transform.apply(pictures(distilled_points(model, n, 40, seed=n)))
        u = set_subspace(scene, points, np.repeat([0, 1], 20), 3)
        measured_share = task["residual"].captured(u)
        assert measured_share is not None
        estimated.append(measured_share[0])
        true.append(gradient_subspace.overlap(u, planted_index))
        assert abs(estimated[-1] - true[-1]) < 0.1
    assert np.all(np.diff(true) > 0.02)
    assert np.all(np.diff(estimated) > 0)


@given(generators, st.integers(2, 6))
def test_whitened_coordinates(rng, p):
    """Mean zero and covariance I_p on the images themselves, and the share of variance they keep."""
    images = (rng.standard_normal((200, 8)) @ rng.standard_normal((8, 8))).reshape(200, 2, 2, 2).astype(np.float32)
    whitening = fit_whitening(images, p)
    z = whitening(images)
    assert np.allclose(z.mean(axis=0), 0, atol=1e-5)
    assert np.allclose(z.T @ z / len(z), np.eye(p), atol=1e-3)
    e = np.linalg.eigvalsh(np.cov(images.reshape(200, 8), rowvar=False, bias=True))[::-1]
    assert whitening.share == pytest.approx(e[:p].sum() / e.sum(), rel=1e-4)


def test_images_without_enough_directions_are_refused():
    flat = np.zeros((50, 1, 3, 3), dtype=np.float32)
    flat[:, 0, 0, 0] = np.random.default_rng(0).standard_normal(50)
    with pytest.raises(RunError, match="lower --directions"):
        fit_whitening(flat, 2)
    with pytest.raises(RunError, match="directions=10"):
        fit_whitening(flat, 10)
    with pytest.raises(RunError, match="lower them"):
        make_scene(SMALL, flat, np.zeros(50, dtype=np.int64), 2)


DATASET = f"arrays:1x{SIDE}x{SIDE}:2"
CONFIG = DistillConfig(
    DATASET, network=ConvNetConfig(depth=1, width=4), transform="standardise", augment="none", ipc=3, horizon=3, window=2
)
QUICK = ["--directions", "12", "--neurons", "60", "--blocks", "10", "--draws", "20", "--subsets", "2", "--networks", "2", "--threads", "1"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Planted pictures as a data set of arrays, and a distilled set of three of them a class."""
    folder = tmp_path_factory.mktemp("planted")
    for split, seed in (("train", 0), ("test", 1)):
        _, images, labels = planted("quadratic", 2, 1500, seed)
        np.savez(folder / f"{split}.npz", images=images, labels=labels)
        if split == "train":
            transform = fit_standardise(images)
            chosen = np.concatenate([np.flatnonzero(labels == c)[:3] for c in range(2)])
            distilled = DistilledSet(transform.apply(images[chosen]), np.repeat([0, 1], 3), transform, CONFIG)
            write_set(folder / "run" / "distilled", distilled, CurvePoint(0, None, 0.5, 0.1), 1)
    return folder


def test_a_run_leaves_what_it_promises(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    main(["bridge", str(root / "run"), "--root", str(root), "--ipc", "1", "--out", str(tmp_path / "out"), *QUICK])
    out = tmp_path / "out"
    assert {p.name for p in (out / "figures").iterdir()} == {"bridge.png", "bridge.pdf", "spectrum.csv", "sets.csv"}
    summary = json.loads((out / "summary.json").read_text())
    assert [(row["name"], row["images"], row["floats"]) for row in summary["sets"]] == [
        ("run", 6, 384),
        ("random, 1 per class", 2, 128),
        ("random, 3 per class", 6, 384),
    ]
    assert all(row["accuracy"] is not None for row in summary["sets"])
    assert summary["reference"]["L"] == 4 * (SIDE // 2) ** 2
    assert "| run |" in (out / "report.md").read_text()
    assert "report" in capsys.readouterr().out


def test_the_task_alone_trains_no_networks(root: Path, tmp_path: Path):
    words = ["--dataset", DATASET, "--transform", "standardise", "--root", str(root), "--out", str(tmp_path / "out")]
    main(["bridge", *words, *QUICK])
    rows = json.loads((tmp_path / "out" / "summary.json").read_text())["sets"]
    assert [row["name"] for row in rows] == ["random, 1 per class", "random, 10 per class"]
    assert all(row["accuracy"] is None for row in rows)


def test_another_set_of_the_same_name_is_another_run(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["--root", str(root), "--ipc", "1", "--out", str(tmp_path / "out"), *QUICK]
    main(["bridge", str(root / "run"), *words])
    found = (tmp_path / "out" / "summary.json").read_bytes()
    distilled = read_set(root / "run")
    write_set(tmp_path / "run" / "distilled", replace(distilled, images=distilled.images + np.float32(1)), None, note="Another.")
    with pytest.raises(SystemExit):
        main(["bridge", str(tmp_path / "run"), *words])
    assert "holds another configuration (seals" in capsys.readouterr().err
    assert (tmp_path / "out" / "summary.json").read_bytes() == found
    main(["bridge", str(root / "run"), *words])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "give --dataset"),
        (["{run}", "--dataset", "mnist"], "not of mnist"),
        (["{run}", "{run}"], "two sets"),
        (["{run}", "--blocks", "7"], "blocks=7"),
        (["{run}", "--ipc", "0"], "at least one image"),
        (["--dataset", "arrays:3x128x128:2"], "49152 numbers, their covariance 19 GB (the limit is 12288 numbers): take smaller ones"),
    ],
)
def test_refusals(root: Path, tmp_path: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        main(["bridge", *(word.format(run=root / "run") for word in words), "--root", str(root), "--out", str(tmp_path / "out")])
    lines = capsys.readouterr().err.strip().splitlines()
    assert (caught.value.code, len(lines)) == (2, 1)
    assert said in lines[0]
    assert not (tmp_path / "out").exists()
