"""`python -m realdata evaluate`: which sets and networks it compares, the order of its choices, and going on after any interruption."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from realdata import data, evaluate, protocol
from realdata.__main__ import main
from realdata.artefact import read_set
from realdata.evaluate import Evaluation
from realdata.protocol import Result
from realdata.trajectories.runs import read_runs
from tests.realdata.sets import distilled_set, write_arrays, write_run
from theory.distill.inner_optim import Momentum
from theory.distill.problem import Diverged

NETWORKS = ("own", "mlp")
KINDS = {"distilled": 1, "distilled-hard": 1, "ema": 1, "ema-hard": 1, "random": 2, "herding": 1, "kmeans": 2}


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A data set, and a run folder with a set that has probabilities for labels and a running average."""
    folder, rng = tmp_path_factory.mktemp("scene"), np.random.default_rng(0)
    write_arrays(folder / "data", rng)
    write_run(folder / "run", distilled_set(rng, soft=True, ema=True))
    return folder / "data", folder / "run"


def words(scene: tuple[Path, Path], target: Path, *more: str, networks: str = ",".join(NETWORKS)) -> list[str]:
    root, run = scene
    settings = ["--seeds", "2", "--lengths", "2", "4", "--threads", "1", "--networks", networks]
    return ["evaluate", str(run), "--root", str(root), "--json", str(target), *settings, *more]


def stored(target: Path) -> dict[str, Any]:
    record = json.loads(target.read_text())
    record.pop("environment")
    return record


@pytest.fixture(scope="module")
def whole(scene: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What an evaluation gives that nothing interrupts."""
    target = tmp_path_factory.mktemp("whole") / "result.json"
    main(words(scene, target))
    assert [path.name for path in target.parent.iterdir()] == ["result.json"]
    return stored(target)


def test_every_set_meets_every_network_and_the_test_split_comes_last(
    scene: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], whole: dict[str, Any]
):
    order: list[str] = []
    load, arm, judge = data.load, evaluate.train_arm, evaluate.judge
    monkeypatch.setattr(data, "load", lambda name, root, split: (order.append(split), load(name, root, split))[1])
    monkeypatch.setattr(evaluate, "train_arm", lambda name, *rest: (order.append(name), arm(name, *rest))[1])
    monkeypatch.setattr(evaluate, "judge", lambda trained, *rest: (order.append(f"judge {trained.name}"), judge(trained, *rest))[1])
    main(words(scene, tmp_path / "result.json"))
    kinds = list(KINDS) * len(NETWORKS)
    assert order == ["train", *kinds, "test", *(f"judge {kind}" for kind in kinds)]
    record = stored(tmp_path / "result.json")
    assert record == whole
    assert [result["network"] for result in record["results"]] == [name for name in NETWORKS for _ in KINDS]
    assert {result["name"]: result["draws"] for result in record["results"]} == KINDS
    assert all(result["networks"] == 2 and result["length"] in (2, 4) and 0.0 <= result["mean"] <= 1.0 for result in record["results"])
    out = capfd.readouterr().out
    assert "mlp (25348 parameters)" in out
    assert "read once" in out
    assert record["diverged"] == []
    for result in record["results"]:
        own, random = (
            Result(x["name"], x["length"], {}, x["accuracies"])
            for x in (result, next(x for x in record["results"] if (x["network"], x["name"]) == (result["network"], "random")))
        )
        apart, interval = (None, None) if own.name == "random" else own.above(random)
        assert result["above_random"] == apart
        assert result["above_random_interval"] == (None if interval is None else list(interval))
        assert result["interval"] == (None if own.interval is None else list(own.interval))
        assert result["floats"] == 8 * 64 + (8 * 4 if result["name"] in ("distilled", "ema") else 0)
        cells = [f"{100 * x:.1f}" for x in (own.mean, *result["interval"])] if result["interval"] else []
        assert not cells or f"| {result['name']} | {result['floats']} | {cells[0]} [{cells[1]}, {cells[2]}] |" in out


def test_networks_that_diverge_are_told_and_the_others_go_on(
    scene: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], whole: dict[str, Any]
):
    train = protocol.train

    def diverging(problem: Any, *rest: Any) -> Any:
        if problem.labels.is_floating_point():
            raise Diverged("as planned")
        return train(problem, *rest)

    monkeypatch.setattr(protocol, "train", diverging)
    main(words(scene, tmp_path / "result.json"))
    record = stored(tmp_path / "result.json")
    soft = ("distilled", "ema")
    assert record["results"] == [result for result in whole["results"] if result["name"] not in soft]
    told = [{"network": network, "name": name, "floats": 544, "why": "as planned"} for network in NETWORKS for name in soft]
    assert record["diverged"] == told
    said = capfd.readouterr()
    assert "| mlp | ema | 544 | diverged | - | - | - | - | - | - |" in said.out
    assert "mlp, ema: as planned" in said.out
    done = 2 * len(NETWORKS) * 2 * sum(KINDS.values())
    assert f"evaluate: {done}/{done} in" in said.err
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_a_step_size_at_which_nothing_trains(tmp_path: Path, scene: tuple[Path, Path], capfd: pytest.CaptureFixture[str]):
    distilled = distilled_set(np.random.default_rng(1))
    object.__setattr__(distilled, "step_size", 1e38)
    write_run(tmp_path / "run", distilled)
    main(words((scene[0], tmp_path / "run"), tmp_path / "result.json", "--baselines", "random", networks="own"))
    record = stored(tmp_path / "result.json")
    assert (record["results"], [lost["name"] for lost in record["diverged"]]) == ([], ["distilled", "random"])
    assert record["diverged"][0]["why"].startswith("training on the set diverged within 4 steps at learning rate 1e+38")


def test_evaluations_of_today_and_of_before_are_read_alike(tmp_path: Path, scene: tuple[Path, Path]):
    """Before: neither intervals nor floats, no list of what diverged, no drop in the protocol."""
    runs = [tmp_path / "run", tmp_path / "older"]
    for seed, run in enumerate(runs):
        distilled = distilled_set(np.random.default_rng(seed))
        write_run(run, replace(distilled, config=replace(distilled.config, seed=seed)))
        main(words((scene[0], run), run / "evaluation.json", "--baselines", "random", networks="own"))
    new = json.loads((runs[1] / "evaluation.json").read_text())
    kept = ("name", "network", "length", "held_out", "mean", "std_networks", "std_draws", "draws", "networks", "accuracies")
    old = {name: new[name] for name in ("config", "environment", "evaluation")}
    old["protocol"] = {name: value for name, value in new["protocol"].items() if name != "drop"}
    old["results"] = [{name: result[name] for name in kept} for result in new["results"]]
    assert old["results"] != new["results"]
    (runs[1] / "evaluation.json").write_text(json.dumps(old))
    for run, seed in zip(read_runs(runs), (0, 1), strict=True):
        assert (run.seed, list(run.accuracies)) == (seed, [("own", "distilled"), ("own", "random")])


def test_what_the_networks_are_trained_on(scene: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen: dict[str, tuple[Any, list[bytes]]] = {}

    def noted(name: str, problem: Any, optimiser: Any, sets: Any, *rest: Any) -> Any:
        assert optimiser.lr == 0.01
        assert problem.augment.shared
        seen[name] = problem.labels, [sets[j][0].numpy().tobytes() for j in range(len(sets))]
        return arm(name, problem, optimiser, sets, *rest)

    arm = evaluate.train_arm
    monkeypatch.setattr(evaluate, "train_arm", noted)
    main(words(scene, tmp_path / "result.json", "--shared", networks="own"))
    distilled = read_set(scene[1])
    assert distilled.images_ema is not None
    assert seen["distilled"][1] == seen["distilled-hard"][1] == [distilled.images.tobytes()]
    assert seen["ema"][1] == seen["ema-hard"][1] == [distilled.images_ema.tobytes()]
    assert np.array_equal(seen["ema"][0], distilled.labels)
    for name in ("distilled-hard", "ema-hard", "random", "herding", "kmeans"):
        assert np.array_equal(seen[name][0], np.repeat(np.arange(4), 2))
    assert len(set(seen["random"][1])) == 2


def test_a_learned_step_size_is_used(tmp_path: Path, scene: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch):
    distilled = distilled_set(np.random.default_rng(1))
    object.__setattr__(distilled, "step_size", 0.37)
    write_run(tmp_path / "run", distilled)
    assert read_set(tmp_path / "run").optimiser().lr == 0.37
    assert read_set(tmp_path / "run").classes == ("w", "x", "y", "z")
    card = (tmp_path / "run" / "distilled" / "card.md").read_text()
    assert "learning rate 0.37 (learned)" in card
    assert "Classes: w, x, y, z" in card
    rates: list[float] = []
    arm = evaluate.train_arm

    def noted(name: str, problem: Any, optimiser: Any, *rest: Any) -> Any:
        rates.append(optimiser.lr)
        return arm(name, problem, optimiser, *rest)

    monkeypatch.setattr(evaluate, "train_arm", noted)
    main(words((scene[0], tmp_path / "run"), tmp_path / "result.json", "--baselines", "", networks="own"))
    assert rates == [0.37]


def test_stopped_at_any_network_it_goes_on(
    scene: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, Any]
):
    """Ctrl-C at the 1st, 5th and 18th network and at the 1st and 7th judged one; each is trained once, and the result is the same."""
    target, trained, judged = tmp_path / "result.json", [0], [0]
    train, accuracy = protocol.train, protocol.accuracy
    stops = {("train", 0), ("train", 4), ("train", 17), ("test", 0), ("test", 6)}

    def count(kind: str, done: list[int]) -> None:
        if (kind, done[0]) in stops:
            stops.remove((kind, done[0]))
            raise KeyboardInterrupt
        done[0] += 1

    def counted_train(*arguments: Any) -> Any:
        count("train", trained)
        return train(*arguments)

    def counted_accuracy(problem: Any, theta: Any, real: Any) -> float:
        if len(real[1]) == 80:
            count("test", judged)
        return accuracy(problem, theta, real)

    monkeypatch.setattr(protocol, "train", counted_train)
    monkeypatch.setattr(protocol, "accuracy", counted_accuracy)
    while stops:
        with pytest.raises(SystemExit) as end:
            main(words(scene, target))
        assert end.value.code == 130
        assert not target.exists()
    main(words(scene, target))
    networks = 2 * len(NETWORKS) * sum(KINDS.values())
    assert (trained, judged) == ([networks], [networks])
    assert stored(target) == whole
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_the_published_protocol(
    tmp_path: Path, scene: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    assert Evaluation(published=True).protocol(horizon=7, images=256).lengths == (1001,)
    assert Evaluation(published=True).protocol(horizon=7, images=257).drop == 2 * 502
    distilled = distilled_set(np.random.default_rng(1))
    object.__setattr__(distilled, "step_size", 0.37)
    write_run(tmp_path / "run", distilled)
    seen: list[tuple[Any, ...]] = []

    def noted(name: str, problem: Any, optimiser: Any, sets: Any, held_out: Any, protocol: Any, *rest: Any) -> Any:
        seen.append((problem.batch, optimiser, protocol.lengths, protocol.drop))
        return arm(name, problem, optimiser, sets, held_out, protocol, *rest)

    arm = evaluate.train_arm
    monkeypatch.setattr(evaluate, "train_arm", noted)
    monkeypatch.setattr(evaluate, "EPOCHS", 5)
    monkeypatch.setattr(evaluate, "FULL_EPOCHS", 3)
    monkeypatch.setattr(evaluate, "BATCH", 6)
    asked = ["--baselines", "", "--published", "--seeds", "1", "--threads", "1"]
    main(["evaluate", str(tmp_path / "run"), "--root", str(scene[0]), "--json", str(tmp_path / "result.json"), *asked])
    assert seen == [(6, Momentum(0.37, 0.9, 5e-4), (10,), 6)]  # 8 images: two batches an epoch
    for run, more, words_seen in ((scene[1], [], "step size"), (tmp_path / "run", ["--lengths", "4"], "one length")):
        with pytest.raises(SystemExit):
            main(["evaluate", str(run), "--root", str(scene[0]), *asked, *more])
        assert words_seen in capfd.readouterr().err


def test_unknown_networks_are_refused(scene: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    for networks in ("own,convnet9", ""):
        with pytest.raises(SystemExit):
            main(words(scene, tmp_path / "result.json", networks=networks))
        assert "unknown network" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_statistics_of_a_single_draw_are_left_open():
    assert Result("herding", 1, {1: 0.5}, [[0.4, 0.6]]).std_draws is None
