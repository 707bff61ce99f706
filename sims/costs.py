"""What a trial costs, counted from its configuration: operations by kind and the bytes of its largest arrays (`sims.lab.sweep.Cost`).

    teacher pass      4 N K d products, K = J L/2 rows (two products), N K gates, N d normals
    least squares     N d^2 products (a symmetric product costs half), N d normals again, since nothing is stored
    matching step     10 M1 L d products a start: gradient 4, mixed derivative 6
    head on n inputs  2 n L^2 (64-bit, symmetric), one eigenproblem of size L; features 2 n L d
Lower orders are left out where they stay below a few percent at the sizes of the presets.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from sims.assumptions_table import SAMPLE
from sims.heads import PENALTIES
from sims.lab.sweep import Cost
from sims.pipeline import Task, task_of
from theory.multi_index import make_link

WORD = {"float32": 1, "float64": 2}  # 32-bit words in a number
ARCSIN = 12.0  # elementwise operations that one arcsin with its clipping and scaling takes the time of
LAW = 200.0  # the same of one entry's sorting and distribution function in a test of its law


def encoding(task: Task) -> Cost:
    """T1: both streamed passes."""
    n, d, k, word = task.N, task.d, task.J * task.L // 2, WORD[task.dtype]
    passes = 1 if task.preprocessing == "none" else 2
    products = 4.0 * n * k * d + (n * d * d if passes == 2 else 0.0) + passes * 2.0 * n * d * task.r
    terms = sum(1 + np.count_nonzero(orders) for _, orders in make_link(task.link, task.r).terms)
    held = 4.0 * word * (2 * task.chunk * d + 5 * k * d) + 8.0 * k * d + min(task.chunk, 2048) * 4.0 * word * k
    return Cost(word * products, passes * n * d, word * n * k + passes * 3.0 * n * terms, 0.0, held)


def matching(task: Task, m1: int) -> Cost:
    """T2, T3 by gradient matching, and two retrained networks (T4)."""
    word, points = WORD[task.dtype], m1 * (2 if task.reflected else 1)
    count = (10.0 * task.J * m1 + 8.0 * points) * task.L
    return Cost(word * count * task.d, 0.0, word * count, 0.0, 6.0 * 4 * word * points * task.L)


def head(task: Task, n: int) -> Cost:
    """A ridge head on n inputs, its penalty picked on the held-out ones, its risk on the test ones."""
    word, all_inputs = WORD[task.dtype], n + task.validation + task.test
    products = word * 2.0 * all_inputs * task.L * task.d + 2.0 * n * task.L**2 + 4.0 * task.validation * task.L * len(PENALTIES)
    largest = max(n, task.validation, task.test)
    elements = 8.0 * all_inputs * task.L + 4.0 * task.validation * len(PENALTIES)
    return Cost(products, 0.0, elements, float(task.L**3), largest * (12.0 * task.L + 4.0 * word * task.d))


def samples(task: Task) -> Cost:
    """Head, held-out and test inputs, drawn in whole chunks."""
    drawn = sum(
        math.ceil(n / task.chunk) * task.chunk if n == task.head_samples else n for n in (task.head_samples, task.validation, task.test)
    )
    return Cost(normals=float(min(drawn, task.N + task.validation + task.test) * task.d))


def risk_trial(config: Mapping[str, Any]) -> Cost:
    """`sims.scaling.trials.risk_trial`."""
    task = task_of(config)
    total = encoding(task) + samples(task) + 2 * head(task, task.head_samples)
    for m1 in config["m1"]:
        total += matching(task, m1) + head(task, task.head_samples)
    for m2 in config["m2"]:
        total += (len(config["m1"]) + 1) * head(task, m2)
    return total


def judging(task: Task) -> Cost:
    """The assumptions on the whole sample, where it is kept for them: it is drawn once more, and its entries are held to their law (A1)."""
    kept = task.N * task.d if task.N * task.d <= SAMPLE else 0
    return Cost(normals=float(kept), elements=LAW * kept, bytes=8.0 * 6 * kept)


def encode_trial(config: Mapping[str, Any]) -> Cost:
    """`sims.encode.experiment.encode_trial`, the k-means of its baselines included (20 rounds)."""
    task = task_of(config)
    n, d, word = task.N, task.d, WORD[task.dtype]
    second_pass = Cost(2.0 * word * n * d * d, float(n * d), 2.0 * n * d)
    clusters = config["M1"] + config["M2"] // d
    k_means = Cost(elements=20.0 * 6 * task.head_samples * clusters * d)
    heads = 3 * head(task, task.head_samples) + 5 * head(task, config["M2"])
    return encoding(task) + samples(task) + matching(task, config["M1"]) + heads + second_pass + k_means + judging(task)


def spectrum_trial(config: Mapping[str, Any]) -> Cost:
    """`sims.population.SpectrumTrial`: half of M^2 pairs, each a cosine, an arcsin and a weighted sum."""
    m, r, grid, word = config["grid"][-1], config["r"], len(config["grid"]), WORD[config["dtype"]]
    pairs = 0.5 * m * m
    eigen = grid * (1 + config["signs"]) * float(r**3)
    held = 24.0 * 256 * m + 12.0 * m * r
    return Cost(word * (4.0 * pairs * r + 2.0 * config["signs"] * m * r), m * r, word * ARCSIN * pairs, eigen, held)


def population_risk_trial(config: Mapping[str, Any]) -> Cost:
    """`sims.population.RiskTrial`: a head of L = width_per_r2 r^2 features for every network of the grid, plain and reflected."""
    r, grid = config["r"], config["grid"]
    width = config["width_per_r2"] * r * r
    train = config["train_per_neuron"] * width
    inputs, networks = 1.5 * train + config["test"], 2 * len(grid) + 2
    factors = len(config["ridges"]) * width**3 / 3.0
    one = Cost(2 * (2.0 * inputs * width * r + train * width**2 + 3.0 * factors), 0.0, 8.0 * inputs * width)
    rows = Cost(2 * 4.0 * width * grid[-1] * r, inputs * r, 4.0 * width * grid[-1], 0.0, 16.0 * inputs * width)
    return networks * one + rows


def head_trial(config: Mapping[str, Any]) -> Cost:
    """`sims.scaling.trials.head_trial`: one singular value problem for every number of labels."""
    width = config["L"]
    counts = [*(share * width for share in config["shares"]), width - 1, width, width + 1]
    return Cost(
        products=sum(4.0 * m2 * width * config["d"] for m2 in counts), cubes=sum(0.5 * min(m2, width) * width * m2 for m2 in counts)
    )
