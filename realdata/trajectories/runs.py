"""Finished runs of several methods and seeds, and what their evaluations found.

    RUN/distilled/   the set          RUN/*.json   its evaluations (`evaluate RUN`; further ones by `--json RUN/NAME.json`)
    a_j              test accuracy of the set of seed j, in per cent: the mean over its networks (over draws too, for real images)
    interval         Student's over seeds, mean a_j +- t_{0.975, n-1} std(a_j) / sqrt(n); of a difference over its pairs of one seed

Nothing is chosen here. Evaluations choose the training length on held-out images, and a run its outer step, before the test split is read.
Every evaluation draws the same real images, so an interval of a difference to random images holds no spread of those draws.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from realdata.artefact import DistilledSet, find_set, read_set
from realdata.compare.report import t_interval, verdict
from realdata.config import stored_config
from realdata.evaluate import OWN, seal
from realdata.trajectory import SHARED
from sims.lab.files import RunError
from sims.lab.laws import Interval

RANDOM = "random"


@dataclass(frozen=True, eq=False)
class Finished:
    """A finished run: its set, the digest of that, and accuracies[network, kind of set] in per cent."""

    place: Path
    distilled: DistilledSet
    seal: str
    accuracies: dict[tuple[str, str], float]
    rules: dict[str, Any]

    @property
    def method(self) -> str:
        return self.distilled.config.method

    @property
    def ipc(self) -> int:
        return self.distilled.config.ipc

    @property
    def seed(self) -> int:
        return self.distilled.config.seed


def read_run(place: Path) -> Finished:
    """The run in `place`; RunError where it has no evaluation, or one of another set."""
    folder, distilled = find_set(place), read_set(place)
    accuracies: dict[tuple[str, str], float] = {}
    rules: dict[str, Any] = {}
    for file in sorted(folder.parent.glob("*.json")):
        record = _read(file)
        if "results" not in record:
            continue
        if stored_config(record["config"], str(file)) != distilled.config:
            raise RunError(f"{file} is an evaluation of another set than the one in {place}: remove it, or evaluate again")
        for result in record["results"]:
            published = record["evaluation"].get("published", False)
            name = result["network"] + (", published protocol" if published else ""), result["name"]
            if name in accuracies:
                raise RunError(f"{file} evaluates {' on '.join(reversed(name))} a second time: remove one of the evaluations in {place}")
            accuracies[name] = 100 * float(np.mean(result["accuracies"]))
            rules[name[0]] = {"drop": None} | record["protocol"] | {"shared": record["evaluation"]["shared"]}
    if not accuracies:
        raise RunError(f"{place} has not been evaluated: python -m realdata evaluate {place}")
    return Finished(place, distilled, seal(place)[:16], accuracies, rules)


def _read(file: Path) -> dict[str, Any]:
    try:
        record = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise RunError(f"{file} cannot be read ({error}): remove it, or evaluate again") from error
    return record if isinstance(record, dict) else {}


def read_runs(places: Sequence[Path]) -> list[Finished]:
    """The runs; RunError where two are the same in method, size and seed, or where they are not to be compared."""
    runs, seen = [read_run(place) for place in places], {}
    if not runs:
        raise RunError("there is nothing to compare: name run folders")
    rules: dict[tuple[int, str], Any] = {}
    for run in runs:
        name = run.method, run.ipc, run.seed
        if name in seen:
            raise RunError(f"{run.place} and {seen[name]} are both {name[0]} at {name[1]} per class, seed {name[2]}: name one of them")
        seen[name] = run.place
        for shared in SHARED:
            first, other = (getattr(one.distilled.config, shared) for one in (runs[0], run))
            if first != other:
                raise RunError(f"{run.place} has {shared} = {other}, {runs[0].place} has {first}: compare them apart")
        for network, found in run.rules.items():
            if rules.setdefault((run.ipc, network), found) != found:
                raise RunError(f"{run.place} was evaluated on {network} by other rules than the runs before it: evaluate all alike")
    return runs


def accuracies(runs: Sequence[Finished]) -> Iterator[dict[str, Any]]:
    """One record for each size, network, kind of set and method: accuracies by seed, their mean, and the difference to random images."""
    for ipc, network, kind in _kinds(runs):
        for method in _methods(runs):
            found = _by_seed(runs, method, ipc, network, kind)
            if not found:
                continue
            values = np.array(list(found.values()))
            record = {"ipc": ipc, "network": network, "set": kind, "method": method, "seeds": list(found), "accuracies": values.tolist()}
            record |= {"mean": float(values.mean()), "interval": t_interval(values)}
            random = _by_seed(runs, method, ipc, network, RANDOM)
            if kind != RANDOM and found.keys() <= random.keys():
                record |= _apart("above_random", values - np.array([random[seed] for seed in found]))
            yield record


def differences(runs: Sequence[Finished]) -> Iterator[dict[str, Any]]:
    """Each method minus the first one, over the seeds that both have, one record for each size, network and kind of distilled set."""
    first, *others = _methods(runs)
    for ipc, network, kind in _kinds(runs):
        for method in others if kind not in (RANDOM, "herding", "kmeans", "means") else ():
            a, b = (_by_seed(runs, name, ipc, network, kind) for name in (first, method))
            seeds = [seed for seed in a if seed in b]
            if seeds:
                head = {"ipc": ipc, "network": network, "set": kind, "methods": [first, method], "seeds": seeds}
                values = np.array([b[seed] - a[seed] for seed in seeds])
                yield head | _apart("difference", values) | {"verdict": verdict(t_interval(values))}


def _apart(name: str, values: np.ndarray) -> dict[str, float | Interval | None]:
    return {name: float(values.mean()), f"{name}_interval": t_interval(values)}


def _methods(runs: Sequence[Finished]) -> list[str]:
    return list(dict.fromkeys(run.method for run in runs))


def _kinds(runs: Sequence[Finished]) -> list[tuple[int, str, str]]:
    """Every (size, network, kind of set), sizes in order, the network that the sets were made with first."""
    names = dict.fromkeys((run.ipc, *name) for run in runs for name in run.accuracies)
    return sorted(names, key=lambda name: (name[0], name[1] != OWN))


def _by_seed(runs: Sequence[Finished], method: str, ipc: int, network: str, kind: str) -> dict[int, float]:
    own = sorted((run for run in runs if (run.method, run.ipc) == (method, ipc)), key=lambda run: run.seed)
    return {run.seed: run.accuracies[network, kind] for run in own if (network, kind) in run.accuracies}
