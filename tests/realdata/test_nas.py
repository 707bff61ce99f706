"""Ranking architectures: the space, correlations, trainings that diverge, interruption, a report from a tiny run."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from scipy.stats import spearmanr

from realdata import nas
from realdata.__main__ import main
from realdata.artefact import DistilledSet, write_set
from realdata.config import DistillConfig
from realdata.nas import Space, correlations, spearman
from realdata.networks import ConvNetConfig
from realdata.preprocess import fit
from realdata.task import training_split
from tests.strategies import generators
from theory.distill.problem import Diverged

pytestmark = pytest.mark.usefixtures("small_mnist")
COUNTS = {"train": 200, "test": 40}
SPACE = "--widths 2 3 --depths 1 --activations relu --poolings avg --norms none batch --epochs 1 --steps 2 --batch 64 --lr 0.05"


@pytest.fixture
def artefact(root: Path, tmp_path: Path) -> Path:
    """Real images, standing for a distilled set with an average."""
    config = DistillConfig("mnist", transform="standardise")
    split = training_split(config, str(root))
    transform = fit("standardise", split.fitted.images)
    images = transform.apply(np.asarray(split.fitted.images[[int(np.argmax(split.fitted.labels == c)) for c in range(10)]]))
    distilled = DistilledSet(images, np.arange(10), transform, config, images_ema=0.9 * images)
    return write_set(tmp_path / "set", distilled, None, note="Real images.")


def command(root: Path, artefact: Path, out: Path, *more: str) -> list[str]:
    return ["nas", str(artefact), "--root", str(root), "--out", str(out), *SPACE.split(), "--threads", "1", *more]


def test_the_full_space_has_720_architectures():
    networks = Space().networks()
    assert len(networks) == len(set(networks)) == 720
    assert ConvNetConfig(depth=3, width=128) in networks


@settings(max_examples=5)
@given(rng=generators)
def test_correlations_are_those_of_ranks(rng: np.random.Generator):
    """Spearman's rho is scipy's, ties included; a monotone proxy gives 1 at every top, its negative -1."""
    x, y = rng.standard_normal(30), rng.integers(0, 5, 30).astype(float)
    y[:2] = [0.0, 4.0]
    assert spearman(x, y) == pytest.approx(spearmanr(x, y).statistic)
    assert np.isnan(spearman(np.ones(30), y))
    for sign in (1.0, -1.0):
        found = list(correlations(x, sign * np.exp(x), rng))
        assert [one["top"] for one in found] == [30, 5, 10, 20]
        assert all(one["spearman"] == pytest.approx(sign) == one["kendall"] for one in found)
        assert found[0]["interval"] == pytest.approx((sign, sign))
    top = next(one for one in correlations(x, y, rng) if one["top"] == 20)
    best = np.argsort(-x)[:20]
    assert top["spearman"] == pytest.approx(spearman(x[best], y[best]))
    assert next(correlations(x, np.ones(30), rng))["spearman"] is None


def test_an_independent_proxy_is_covered_by_its_interval():
    """100 independent pairs over 40 architectures: about 95 of the intervals hold 0; 86 or fewer have probability below 0.001."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(100):
        interval = next(correlations(rng.standard_normal(40), rng.standard_normal(40), rng))["interval"]
        held += interval[0] <= 0.0 <= interval[1]
    assert held > 86


def test_a_run_ranks_and_goes_on_after_an_interruption(root: Path, artefact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    main(command(root, artefact, tmp_path / "whole"))
    summary = json.loads((tmp_path / "whole" / "summary.json").read_text())
    assert summary["architectures"] == summary["space"] == 4
    assert set(summary["correlations"]) == {"distilled", "ema", "random"}
    score, calls = nas.Bench.score, []

    def stopping(self: nas.Bench, *asked: Any) -> float:
        calls.append(asked)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return score(self, *asked)

    monkeypatch.setattr(nas.Bench, "score", stopping)
    with pytest.raises(SystemExit):
        main(command(root, artefact, tmp_path / "run"))
    main(command(root, artefact, tmp_path / "run"))
    assert len(calls) == 16 + 1
    table = (tmp_path / "run" / "figures" / "nas.csv").read_text()
    assert table == (tmp_path / "whole" / "figures" / "nas.csv").read_text()


def test_a_diverged_network_leaves_the_ranking_and_is_counted(
    root: Path, artefact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    def scored(self: nas.Bench, arm: str, network: ConvNetConfig, seed: int) -> float:
        if network.width == 3 and network.norm == "none" and arm == "random":
            raise Diverged("its loss is NaN")
        return 0.1 * network.width + 0.01 * (network.norm == "batch")

    monkeypatch.setattr(nas.Bench, "score", scored)
    main(command(root, artefact, tmp_path / "run"))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["architectures"], summary["space"]) == (3, 4)
    assert summary["correlations"]["distilled"][0]["spearman"] == pytest.approx(1.0)
    assert "3 of 4 architectures" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--widths", "2", "--norms", "none"], "at least 3 architectures: 1"),
        (["--depths", "9"], "depth 9 halves"),
        (["--norms", "none", "spectral"], "unknown norm 'spectral'"),
        (["--lr", "0"], "lr=0"),
    ],
)
def test_bad_spaces_end_in_one_line(
    root: Path, artefact: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], more: list[str], said: str
):
    with pytest.raises(SystemExit) as caught:
        main(command(root, artefact, tmp_path / "run", *more))
    lines = capfd.readouterr().err.splitlines()
    assert caught.value.code == 2, lines
    assert len(lines) == 1
    assert said in lines[0]
    assert not (tmp_path / "run").exists()
