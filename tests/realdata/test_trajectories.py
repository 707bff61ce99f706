"""Finished runs side by side: accuracies and paired differences, errors along experts, what is not to be compared, the whole program."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from realdata import data
from realdata.__main__ import main
from realdata.artefact import read_set
from realdata.bridge import Tensors
from realdata.config import as_settings
from realdata.experts import open_experts
from realdata.preprocess import fit
from realdata.second_order import forward
from realdata.task import stream, training_split
from realdata.trajectories import errors
from realdata.trajectories.errors import Curves
from realdata.trajectories.report import apart, architecture_table, matching_pace
from realdata.trajectories.runs import accuracies, differences, read_runs
from sims.lab.files import RunError
from tests.realdata.sets import distilled_set, write_run
from tests.strategies import generators

pytestmark = pytest.mark.usefixtures("small_mnist")
COUNTS = {"train": 300, "test": 40}
RULES = {"lengths": [3], "networks": 2, "draws": 2, "held_out_images": 10, "seed": 0}
NETWORK = "--transform standardise --network.depth 2 --network.width 3 --threads 1"


def write_finished(place: Path, method: str, seed: int, found: dict[str, Any], ipc: int = 2, **more: Any) -> Path:
    """A run with a made-up set and evaluation: `found` has accuracies (draws, networks) of each kind of set."""
    distilled = distilled_set(np.random.default_rng(seed), ipc=ipc)
    config = replace(distilled.config, method=method, inner="sgd", seed=seed, **more)
    write_run(place, replace(distilled, config=config))
    write_evaluation(place / "evaluation.json", config, {("own", kind): table for kind, table in found.items()})
    return place


def write_evaluation(file: Path, config: Any, found: dict[tuple[str, str], Any], rules: dict[str, Any] = RULES) -> None:
    results = [{"network": network, "name": kind, "accuracies": table} for (network, kind), table in found.items()]
    record = {"protocol": rules, "config": as_settings(config), "evaluation": {"shared": False}, "results": results}
    file.write_text(json.dumps(record))


def test_accuracies_and_differences_are_paired_by_seed(tmp_path: Path):
    """Against scipy's t interval; the seed that one method lacks is left out of the difference alone."""
    rng, places, own = np.random.default_rng(0), [], {}
    for method, seeds in (("mtt", (0, 1, 2)), ("ftd", (2, 0, 1, 5))):
        for seed in seeds:
            found = {"distilled": rng.uniform(0.3, 0.4, (1, 2)).tolist(), "random": rng.uniform(0.1, 0.2, (2, 2)).tolist()}
            own[method, seed] = {kind: 100 * float(np.mean(table)) for kind, table in found.items()}
            places.append(write_finished(tmp_path / f"{method}-{seed}", method, seed, found))
    runs = read_runs(places)
    rows = {(x["method"], x["set"]): x for x in accuracies(runs)}
    assert list(rows) == [("mtt", "distilled"), ("ftd", "distilled"), ("mtt", "random"), ("ftd", "random")]
    for (method, kind), row in rows.items():
        seeds = sorted(seed for name, seed in own if name == method)
        values = np.array([own[method, seed][kind] for seed in seeds])
        assert row["seeds"] == seeds
        assert row["accuracies"] == pytest.approx(values)
        assert row["interval"] == pytest.approx(tuple(stats.ttest_1samp(values, 0).confidence_interval()))
        assert ("above_random" in row) == (kind == "distilled")
        if kind == "distilled":
            above = values - [own[method, seed]["random"] for seed in seeds]
            assert row["above_random"] == pytest.approx(above.mean())
            assert row["above_random_interval"] == pytest.approx(tuple(stats.ttest_1samp(above, 0).confidence_interval()))
    (between,) = differences(runs)
    apart = np.array([own["ftd", seed]["distilled"] - own["mtt", seed]["distilled"] for seed in (0, 1, 2)])
    assert (between["methods"], between["seeds"]) == (["mtt", "ftd"], [0, 1, 2])
    assert between["difference"] == pytest.approx(apart.mean())
    assert between["difference_interval"] == pytest.approx(tuple(stats.ttest_1samp(apart, 0).confidence_interval()))


def test_other_networks_stand_in_files_of_their_own(tmp_path: Path):
    place = write_finished(tmp_path / "a", "mtt", 0, {"distilled": [[0.5]], "random": [[0.25]]})
    config = read_set(place).config
    write_evaluation(place / "wide.json", config, {("mlp", "distilled"): [[0.4]], ("mlp", "random"): [[0.3]]}, RULES | {"lengths": [9]})
    (place / "summary.json").write_text('{"outer_steps": 3}')
    rows = {(x["network"], x["set"]): x for x in accuracies(read_runs([place]))}
    assert {name: row["mean"] for name, row in rows.items()} == pytest.approx(
        {("own", "distilled"): 50.0, ("own", "random"): 25.0, ("mlp", "distilled"): 40.0, ("mlp", "random"): 30.0}
    )
    assert rows["mlp", "distilled"]["above_random"] == pytest.approx(10.0)
    assert rows["mlp", "distilled"]["interval"] is None
    table = architecture_table(list(rows.values())).splitlines()
    assert [line.strip("| ") for line in (table[0], table[2])] == [
        "images a class | network | mtt, distilled | mtt, random",
        "2 | mlp | 40.0 | 30.0",
    ]


def _wrong(tmp_path: Path) -> dict[str, Callable[[Path], list[Path]]]:
    """What is done to a finished run before it is read, by the words that follow."""

    def other(name: str, **more: Any) -> Callable[[Path], list[Path]]:
        return lambda place: [place, write_finished(tmp_path / name, more.pop("method", "ftd"), 0, {"distilled": [[0.1]]}, **more)]

    def rewritten(content: str) -> Callable[[Path], list[Path]]:
        return lambda place: [(place / "evaluation.json").write_text(content) and place]

    def another_set(place: Path) -> list[Path]:
        write_evaluation(place / "evaluation.json", replace(read_set(place).config, seed=7), {("own", "distilled"): [[0.1]]})
        return [place]

    def twice(place: Path) -> list[Path]:
        write_evaluation(place / "more.json", read_set(place).config, {("own", "distilled"): [[0.1]]})
        return [place]

    def by_other_rules(place: Path) -> list[Path]:
        b = write_finished(tmp_path / "b", "ftd", 0, {"distilled": [[0.1]]})
        write_evaluation(b / "evaluation.json", read_set(b).config, {("own", "distilled"): [[0.1]]}, RULES | {"networks": 3})
        return [place, b]

    return {
        "there is nothing to compare": lambda _: [],
        "has not been evaluated": rewritten('{"outer_steps": 3}'),
        "cannot be read": rewritten('{"results": '),
        "an evaluation of another set": another_set,
        "evaluates distilled on own a second time": twice,
        "are both mtt at 2 per class, seed 0": other("b", method="mtt"),
        "has held_out = 0.2": other("b", held_out=0.2),
        "by other rules": by_other_rules,
    }


@pytest.mark.parametrize("said", _wrong(Path()))
def test_what_cannot_be_compared_is_named(tmp_path: Path, said: str):
    place = write_finished(tmp_path / "a", "mtt", 0, {"distilled": [[0.1]]})
    with pytest.raises(RunError, match=said):
        read_runs(_wrong(tmp_path)[said](place))


@given(rng=generators, factor=st.floats(0.2, 5.0), spread=st.floats(0.0, 0.2))
def test_a_planted_ratio_is_found_over_the_experts_that_both_have(rng: np.random.Generator, factor: float, spread: float):
    """Experts differ tenfold, the ratio hardly: pairing finds it. The interval is that of the logarithms."""
    size = rng.uniform(1.0, 10.0, 7)
    noise = np.exp(spread * rng.standard_normal(7))
    a = Curves(np.column_stack([size, size]), (1.0, 2.0), tuple(range(7)))
    b = Curves(np.column_stack([size, factor * size * noise])[1:], (1.0, 2.0), tuple(range(1, 7)))
    found = apart(a, b, 1, ratio=True)
    assert found is not None
    logs = np.log(factor * noise[1:])
    assert (found["experts"], found["of"]) == (6, "ratio")
    assert found["value"] == pytest.approx(math.exp(logs.mean()))
    if spread > 1e-3:
        ends = stats.ttest_1samp(logs, 0).confidence_interval()
        assert found["interval"] == pytest.approx((math.exp(ends.low), math.exp(ends.high)))
    difference = apart(a, b, 1, ratio=False)
    assert difference is not None
    assert difference["value"] == pytest.approx(float(((factor * noise - 1) * size)[1:].mean()))
    assert apart(a, replace(b, values=0.0 * b.values), 1, ratio=True) is None
    assert apart(a, replace(b, experts=tuple(range(10, 16))), 1, ratio=True) is None


@given(rng=generators, pace=st.floats(1.0, 1.8), spread=st.floats(0.0, 0.3))
def test_the_pace_that_matches_training_losses_is_found(rng: np.random.Generator, pace: float, spread: float):
    """P8: losses that fall as exp(-e / 10) and exp(-e / (10 pace)); experts differ, by the same in both kinds."""
    epochs, shift = tuple(range(21)), np.exp(spread * rng.standard_normal(4))
    plain, flat = (Curves(shift[:, None] * np.exp(-np.array(epochs) / (10 * p)), epochs, (0, 1, 2, 3)) for p in (1.0, pace))
    assert matching_pace(plain, flat) == pytest.approx(pace, rel=5e-3)
    assert matching_pace(plain, replace(flat, values=0.0 * flat.values)) is None
    up = plain.values + 0.5 * (np.array(epochs) % 2)
    assert matching_pace(replace(plain, values=up), replace(flat, values=plain.values[:, ::2], epochs=epochs[::2])) == pytest.approx(1.0)


def distil_words(root: Path, store: Path, out: Path, method: str, seed: int) -> list[str]:
    loop = "--init real --inner sgd --inner-lr 0.05 --horizon 3 --outer-steps 2 --curve-every 2 --curve-networks 1 --curve-images 20"
    more = "--trajectory.experts 2 --trajectory.high 2 --trajectory.length 1 --trajectory.curve-steps 2 --augment none"
    place = ["--root", str(root), "--experts", str(store), "--out", str(out), "--method", method, "--seed", str(seed)]
    return ["distill", "--dataset", "mnist", *place, *NETWORK.split(), *loop.split(), *more.split()]


@pytest.fixture(scope="module")
def compared(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Experts of both kinds, two runs of each method, evaluated: TMP/store, TMP/METHOD-SEED."""
    place = tmp_path_factory.mktemp("compared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(data.SOURCES, "mnist", replace(data.SOURCES["mnist"], counts=COUNTS))
        recipe = f"--epochs 4 --batch 50 --lr 0.05 --count 2 --quality.snapshots 3 --quality.images 20 {NETWORK}".split()
        for flat in ([], ["--flat.rho", "0.1", "--pace", "1.3"]):
            main(["experts", "--dataset", "mnist", "--root", str(root), "--store", str(place / "store"), *recipe, *flat])
        for method in ("mtt", "ftd"):
            for seed in (0, 1):
                run = place / f"{method}-{seed}"
                main(distil_words(root, place / "store", run, method, seed))
                rules = ["--baselines", "random", "--seeds", "2", "--lengths", "3", "--threads", "1"]
                main(["evaluate", str(run), "--root", str(root), *rules])
    return place


def command(root: Path, place: Path, out: Path, names: tuple[str, ...] = ("mtt-0", "ftd-0", "mtt-1", "ftd-1")) -> list[str]:
    runs = [str(place / name) for name in names]
    small = ["--retracing.images", "15", "--threads", "1"]
    return ["trajectories", *runs, "--experts", str(place / "store"), "--root", str(root), "--out", str(out), *small]


def test_the_program_from_runs_to_report(root: Path, compared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    measured = []
    measure = errors.measure
    monkeypatch.setattr(errors, "measure", lambda *asked: (measured.append(asked), measure(*asked))[1])
    main(command(root, compared, tmp_path / "r", ("mtt-0", "ftd-0")))
    assert len(measured) == 4
    main(command(root, compared, tmp_path / "r"))
    assert len(measured) == 8, "further runs alone are measured"
    summary = json.loads((tmp_path / "r" / "summary.json").read_text())
    assert (summary["methods"], summary["retraced"], summary["diverged"]) == (["mtt", "ftd"], 8, 0)
    assert {(x["set"], x["method"]): x["seeds"] for x in summary["accuracies"]}["random", "ftd"] == [0, 1]
    at = {(x["quantity"], x["epoch"]): x for x in summary["errors"]}
    assert {epoch for _, epoch in at} == {1, 2, 3, 4}
    first = at["accumulated", 1]["methods"]["mtt"]
    assert first["mean"] == at["matching", 1]["methods"]["mtt"]["mean"]
    assert first["experts"] == 2
    assert at["initialisation", 1]["methods"]["ftd"]["mean"] == 0.0
    assert at["initialisation", 1]["apart"]["ftd, mtt"] is None
    assert at["excess", 1]["methods"]["mtt"]["mean"] == at["fresh", 1]["methods"]["mtt"]["mean"]
    assert set(summary["paces"]) == {"ftd"}
    losses = [x["methods"] for x in summary["experts"] if x["quantity"] == "train_loss"]
    assert losses[0]["mtt"] == losses[0]["ftd"]
    report = (tmp_path / "r" / "report.md").read_text()
    for words in ("## Accuracy on the test split", "ftd - mtt", "## Errors along the experts", "2 at 1 a class", "## The experts"):
        assert words in report
    assert len((tmp_path / "r" / "figures" / "errors.csv").read_text().splitlines()) == 1 + 4 * 2 * 4
    assert {path.suffix for path in (tmp_path / "r" / "figures").iterdir()} == {".png", ".pdf", ".csv"}


def test_errors_are_those_of_students_trained_by_hand(root: Path, compared: Path, tmp_path: Path):
    """P7 and P9 on images, without warps: losses and norms by torch's own functions."""
    place = compared / "ftd-1"
    (run,), distilled = read_runs([place]), read_set(place)
    folder = next((compared / "store").glob("mnist-flat-*"))
    experts = open_experts(folder, 2, torch.device("cpu"))
    split = training_split(distilled.config, str(root))
    rows = np.sort(stream(0, "retrace").permutation(len(split.held_out))[:15])
    images = torch.from_numpy(fit("standardise", split.fitted.images).apply(split.held_out.images[rows]))
    held_out = images, torch.from_numpy(split.held_out.labels[rows])
    found = errors.measure(run, experts, 1, held_out, torch.device("cpu"))
    module, labels = experts.recipe.module(), torch.arange(10)
    s, rate = torch.from_numpy(distilled.images), distilled.step_size
    assert rate is not None

    def trained(theta: Tensors) -> Tensors:
        for _ in range(3):
            theta = tuple(p.detach().requires_grad_() for p in theta)
            g = torch.autograd.grad(F.cross_entropy(forward(module, theta, s), labels), theta)
            theta = tuple(p - rate * q for p, q in zip(theta, g, strict=True))
        return tuple(p.detach() for p in theta)

    def gap(a: Tensors, b: Tensors) -> float:
        return float(sum(((p - q) ** 2).sum() for p, q in zip(a, b, strict=True)) ** 0.5)

    def loss(theta: Tensors) -> float:
        return float(F.cross_entropy(forward(module, theta, held_out[0]), held_out[1]))

    own = experts.snapshot(1, 0)
    for t in range(4):
        start, target, before = experts.snapshot(1, t), experts.snapshot(1, t + 1), own
        own, fresh = trained(own), trained(start)
        moved = [tuple(p - q for p, q in zip(a, b, strict=True)) for a, b in ((own, before), (fresh, start))]
        wanted = {
            "matching": gap(fresh, target),
            "initialisation": gap(*moved),
            "accumulated": gap(own, target),
            "segment": gap(start, target),
            "way": gap(experts.snapshot(1, 0), target),
            "excess": loss(own) - loss(target),
            "fresh": loss(fresh) - loss(target),
        }
        assert {name: found[name][t] for name in wanted} == pytest.approx(wanted, rel=1e-3, abs=1e-5)
    assert found["epochs"] == [1.0, 2.0, 3.0, 4.0]


def test_a_start_that_is_not_shaken_changes_nothing(root: Path, compared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """And one that is does: P9's starts off the expert's snapshot."""
    for shake in (0.0, 0.5):
        monkeypatch.setattr(errors, "SHAKE", shake)
        main(command(root, compared, tmp_path / str(shake), ("mtt-0",)))
        lines = (tmp_path / str(shake) / "figures" / "errors.csv").read_text().splitlines()
        column = lines[0].split(",").index("shaken")
        rises = [float(line.split(",")[column]) for line in lines[1:]]
        assert all((rise == 0.0) == (shake == 0.0) for rise in rises)


def test_students_that_diverge_are_counted_and_left_out(root: Path, compared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    lose = errors.mean_loss
    monkeypatch.setattr(errors, "mean_loss", lambda module, theta, judged: math.nan if lost else lose(module, theta, judged))
    lost = True
    main(command(root, compared, tmp_path, ("mtt-0",)))
    lost = False
    main(command(root, compared, tmp_path, ("mtt-0", "ftd-0")))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["retraced"], summary["diverged"]) == (4, 2)
    assert {method for x in summary["errors"] for method in x["methods"]} == {"ftd"}
    assert "Diverged on the way: 2 of 4" in (tmp_path / "report.md").read_text()


def test_runs_along_no_experts_are_refused_beside_them(root: Path, compared: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    place = write_finished(tmp_path / "a", "rat-bptt", 0, {"distilled": [[0.1]]})
    with pytest.raises(SystemExit) as caught:
        main(["trajectories", str(place), "--experts", str(compared / "store"), "--out", str(tmp_path / "r")])
    assert caught.value.code == 2
    assert "was made by rat-bptt, along no experts" in capfd.readouterr().err
    main(["trajectories", str(place), "--out", str(tmp_path / "r")])
    assert "Errors along" not in (tmp_path / "r" / "report.md").read_text()
