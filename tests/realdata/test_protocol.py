"""The evaluation protocol: choice of the length, what it keeps, statistics, and that the test split plays no part in a choice."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from realdata import protocol as protocols
from realdata.augment import Augment
from realdata.bridge import ModuleProblem
from realdata.networks import ConvNetConfig, convnet
from realdata.protocol import IN_MEMORY, Protocol, Result, Shelf, Trained, accuracy, judge, train, train_arm
from realdata.second_order import forward
from sims.lab.files import RunError
from sims.lab.progress import Silent
from tests.strategies import seeds
from theory.distill.adjoint import unroll
from theory.distill.inner_optim import SGD, Adam, Momentum
from theory.distill.problem import Diverged
from theory.distill.truncation import Window

SHAPE = (1, 4, 4)
S = (torch.from_numpy(np.random.default_rng(0).standard_normal((3, *SHAPE)).astype(np.float32)),)


def a_problem() -> ModuleProblem:
    return ModuleProblem(convnet(ConvNetConfig(1, 3), SHAPE, 3), 3, 1, torch.arange(3), Augment("flip-rotate"))


@given(seed=seeds, lengths=st.sets(st.integers(1, 6), min_size=1))
def test_training_keeps_the_parameters_of_each_length(seed: int, lengths: set[int]):
    problem, optimiser = a_problem(), Adam(0.01)
    ordered = sorted(lengths)
    kept = train(problem, optimiser, S, np.random.default_rng(seed), ordered)
    rng = np.random.default_rng(seed)
    theta = problem.init(rng)
    noises = [problem.draw(rng) for _ in range(max(ordered))]
    for length, mine in zip(ordered, kept, strict=True):
        theirs = unroll(problem, optimiser, S, theta, noises, Window(length - 1, length)).end.theta
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


def test_the_step_size_drops_once_and_the_slots_begin_anew():
    problem, kept = a_problem(), train(a_problem(), Momentum(0.1, 0.9), S, np.random.default_rng(1), (3, 7), drop=3)
    rng = np.random.default_rng(1)
    theta = problem.init(rng)
    for optimiser, steps in ((Momentum(0.1, 0.9), 3), (Momentum(0.1 * 0.1, 0.9), 4)):
        slots = optimiser.init(theta)
        for t in range(steps):
            theta, slots = optimiser.step(theta, slots, t, problem.gradient(theta, S, problem.draw(rng)))
    assert all(torch.equal(a, b) for a, b in zip(kept[1], theta, strict=True))
    undisturbed = train(a_problem(), Momentum(0.1, 0.9), S, np.random.default_rng(1), (3, 7))
    assert all(torch.equal(a, b) for a, b in zip(kept[0], undisturbed[0], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(kept[1], undisturbed[1], strict=True))


def test_accuracy_counts_hits():
    problem, rng = a_problem(), np.random.default_rng(3)
    theta = problem.init(rng)
    images = torch.from_numpy(rng.standard_normal((300, *SHAPE)).astype(np.float32))
    guesses = forward(problem.module, theta, images).argmax(1)
    assert accuracy(problem, theta, (images, guesses)) == 1.0
    wrong = guesses.clone()
    wrong[:75] = (wrong[:75] + 1) % 3
    assert accuracy(problem, theta, (images, wrong)) == 0.75


def test_divergence_is_named():
    with pytest.raises(Diverged, match=r"within 60 steps at learning rate 1e\+38: take fewer"):
        train(a_problem(), SGD(1e38), S, np.random.default_rng(0), (60,))


def test_the_length_is_chosen_on_held_out_images_alone():
    """Held-out labels are the guesses after 2 steps: length 2 must win, whatever the test labels say."""
    problem, optimiser, rng = a_problem(), Adam(0.3), np.random.default_rng(4)
    images = torch.from_numpy(rng.standard_normal((200, *SHAPE)).astype(np.float32))
    protocol = Protocol(lengths=(1, 2, 40), networks=1, draws=1)
    kept = train(problem, optimiser, S, np.random.default_rng((0, 0, 0)), protocol.lengths)
    guesses = [forward(problem.module, theta, images).argmax(1) for theta in kept]
    arm = train_arm("set", problem, optimiser, [S], (images, guesses[1]), protocol, Silent())
    assert arm.length == 2
    assert arm.held_out[2] == 1.0
    result = judge(arm, (images, guesses[0]), Silent())
    assert result.accuracies == [[float((guesses[0] == guesses[1]).double().mean())]]


def test_arms_start_from_equal_networks_and_different_draws_differ():
    problem, protocol = a_problem(), Protocol(lengths=(1,), networks=2, draws=2)
    real = torch.from_numpy(np.random.default_rng(0).standard_normal((5, *SHAPE)).astype(np.float32)), torch.zeros(5, dtype=torch.int64)
    one, other = (train_arm(name, problem, SGD(0.1), [S, S], real, protocol, Silent()) for name in ("one", "other"))
    flat, others = ([network.theta[1][0] for row in arm.networks for network in row] for arm in (one, other))
    assert all(torch.equal(a, b) for a, b in zip(flat, others, strict=True))
    assert len({tuple(a.ravel().tolist()) for a in flat}) == 4


def test_a_shelf_keeps_what_is_needed_and_nothing_is_trained_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Parameters at all lengths, then at the chosen one, then none; a damaged or missing network is trained anew."""
    problem, shelf = a_problem(), Shelf(tmp_path).part("convnet")
    protocol = Protocol(lengths=(1, 2, 4), networks=2, draws=1)
    real = torch.from_numpy(np.random.default_rng(0).standard_normal((50, *SHAPE)).astype(np.float32)), torch.arange(50) % 3
    trained: list[int] = []
    original = protocols.train
    monkeypatch.setattr(protocols, "train", lambda *a: (trained.append(1), original(*a))[1])

    def arm(shelf: Shelf = IN_MEMORY) -> Trained:
        return train_arm("set", problem, Adam(0.1), [S], real, protocol, Silent(), shelf)

    expected = judge(arm(), real, Silent())
    files = [tmp_path / "convnet" / f"set-0-{k}.safetensors" for k in range(2)]
    with monkeypatch.context() as patch:
        patch.setattr(protocols, "_chosen", lambda arm: arm)
        assert all(not network.theta for network in arm(shelf).networks[0]), "parameters lie on the shelf, not in memory"
    wide = [file.stat().st_size for file in files]
    found = arm(shelf)
    narrow = [file.stat().st_size for file in files]
    assert len(trained) == 4
    assert max(narrow) < 0.6 * min(wide)
    files[0].write_bytes(files[0].read_bytes()[:-1])
    found = arm(shelf)
    assert len(trained) == 5
    assert judge(found, real, Silent()).record() == expected.record()
    assert max(file.stat().st_size for file in files) < 0.6 * min(narrow)
    assert judge(arm(shelf), real, Silent()).record() == expected.record()
    assert len(trained) == 5
    files[1].unlink()
    assert judge(arm(shelf), real, Silent()).record() == expected.record()
    assert len(trained) == 6
    found = arm(shelf.part("other"))
    (tmp_path / "convnet" / "other" / "set-0-1.safetensors").unlink()
    with pytest.raises(RunError, match="has gone"):
        judge(found, real, Silent())


@given(seed=seeds, draws=st.integers(1, 4), networks=st.integers(1, 4))
def test_statistics_are_those_of_the_two_way_table(seed: int, draws: int, networks: int):
    a = np.random.default_rng(seed).random((draws, networks))
    result = Result("x", 5, {5: 0.5}, a.tolist())
    assert result.mean == pytest.approx(a.mean())
    if networks > 1:
        expected = np.sqrt(np.mean([np.var(row, ddof=1) for row in a]))
        assert result.std_networks == pytest.approx(expected)
    else:
        assert result.std_networks is None
    assert (result.std_draws is None) == (draws == 1)
    if draws > 1:
        assert result.std_draws == pytest.approx(np.std([row.mean() for row in a], ddof=1))
    assert result.record()["held_out"] == {"5": 0.5}


@given(seed=seeds, draws=st.integers(1, 4), networks=st.integers(1, 4), others=st.integers(1, 5))
def test_intervals_are_those_of_scipy(seed: int, draws: int, networks: int, others: int):
    """Over draws, or over the networks of a single one; Welch's for a difference."""
    rng = np.random.default_rng(seed)
    a, b = rng.random((draws, networks)), 0.3 * rng.random((others, networks))
    x, y = (Result("x", 5, {5: 0.5}, table.tolist()) for table in (a, b))
    over, against = (table.mean(axis=1) if len(table) > 1 else table[0] for table in (a, b))
    assert (x.interval is None) == (len(over) == 1)
    if x.interval is not None:
        assert x.interval == pytest.approx(tuple(stats.ttest_1samp(over, 0).confidence_interval()))
    apart, interval = x.above(y)
    assert apart == pytest.approx(a.mean() - b.mean())
    assert (interval is None) == (min(len(over), len(against)) == 1)
    if interval is not None:
        assert interval == pytest.approx(tuple(stats.ttest_ind(over, against, equal_var=False).confidence_interval()))


def test_equal_accuracies_have_an_interval_of_no_width():
    x, y = (Result("x", 5, {5: 0.5}, [[share] * 3]) for share in (0.5, 0.25))
    assert (x.interval, x.above(y)) == ((0.5, 0.5), (0.25, (0.25, 0.25)))


@pytest.mark.parametrize(
    "settings", [{"lengths": ()}, {"lengths": (5, 5)}, {"lengths": (0, 5)}, {"networks": 0}, {"draws": 0}, {"held_out_images": 0}]
)
def test_impossible_protocols_are_refused(settings: dict[str, object]):
    with pytest.raises(RunError, match=r"lengths=|networks=|draws=|held_out_images="):
        Protocol(**({"lengths": (1,)} | settings))  # pyright: ignore[reportArgumentType]
