"""Published cells of truncated backpropagation: each parses and comes back, methods of a cell compare, numbers are their sources'."""

import tomllib

import pytest

from realdata.__main__ import Command, Distill, with_presets
from realdata.cells import FIXED_END, UNROLLED, known
from realdata.config import DistillConfig, as_settings, stored_config
from sims.lab.files import RunError, toml_text
from sims.lab.options import parse_words
from theory.distill.adaptive import AdaptiveWindow
from theory.distill.truncation import FixedWindow, RandomWindow

NAMES = [name for name in known("distill") if name.split("-")[0] in ("rat", "at", "t")]


def config_of(name: str, *more: str) -> DistillConfig:
    command = parse_words(Command, with_presets(["distill", "--preset", name, *more]), "realdata")
    assert isinstance(command, Distill)
    return command.config


@pytest.mark.parametrize("name", NAMES)
def test_a_cell_is_what_its_name_says_and_stores_and_returns(name: str):
    config = config_of(name)
    method, rest = name.split("-", 1)
    assert (f"{method}-bptt", f"{config.dataset}-ipc{config.ipc}") == (config.method, rest)
    assert stored_config(tomllib.loads(toml_text(as_settings(config))), name) == config
    assert config_of(name, "--seed", "7").seed == 7


# From the papers' released scripts: T, M (AT: M and d), images a class and classes a step, labels, real batch, outer rate.
SOURCES = {
    "rat-cifar10-ipc10": (RandomWindow(200, 60), None, None, False, 5000, 1e-3),
    "rat-cifar100-ipc10": (RandomWindow(300, 100), 1, None, True, 5000, 1e-3),
    "rat-tiny-imagenet-ipc10": (RandomWindow(300, 100), 1, 50, True, 1000, 3e-4),
    "at-cifar10-ipc1": (AdaptiveWindow(200, 40, 10), None, None, False, 5000, 1e-3),
    "at-cifar100-ipc50": (AdaptiveWindow(300, 100, 20), 1, None, True, 5000, 1e-3),
    "at-tiny-imagenet-ipc1": (AdaptiveWindow(300, 100, 30), None, 50, True, 1000, 3e-4),
    "at-imagenet1k-64-ipc1": (AdaptiveWindow(280, 80, 40), None, 50, True, 1500, 3e-4),
    "t-cifar100-ipc1": (FixedWindow(130, 90), None, None, True, 5000, 3e-4),
    "t-tiny-imagenet-ipc10": (FixedWindow(270, 90), 1, 50, True, 2000, 3e-4),
    "t-imagenet1k-64-ipc1": (FixedWindow(280, 80), None, 50, True, 1500, 3e-4),
}


@pytest.mark.parametrize("name", SOURCES)
def test_numbers_are_those_of_the_released_scripts(name: str):
    c = config_of(name)
    assert (c.windows(), c.batch_per_class, c.classes_per_step, c.learn_labels, c.real_batch, c.outer_lr) == SOURCES[name]
    assert (c.inner, c.inner_lr, c.init, c.init_norm, c.network.width) == ("adam", 1e-3, "noise", 1.0, 128)


@pytest.mark.parametrize("cell", UNROLLED, ids=lambda cell: f"{cell[0]}-{cell[1]}")
def test_methods_of_a_cell_differ_in_their_windows_alone(cell: tuple[str, int]):
    rest = f"{cell[0]}-ipc{cell[1]}"
    rat, at = (as_settings(config_of(f"{method}-{rest}")) for method in ("rat", "at"))
    assert {key for key in rat if rat[key] != at[key]} <= {"method", "window", "adaptive"}
    if cell in FIXED_END:
        fixed = as_settings(config_of(f"t-{rest}"))
        assert {key for key in rat if rat[key] != fixed[key]} <= {"method", "window", "horizon", "real_batch"}


def test_an_unknown_cell_is_answered_with_the_known_ones():
    with pytest.raises(RunError, match=r"unknown preset 'rat-cifar10-ipc2': choose one of cpu, .*rat-cifar10-ipc1, "):
        config_of("rat-cifar10-ipc2")
