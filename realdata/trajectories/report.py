"""What a comparison of finished runs leaves for its reader: accuracies, errors along the experts, the experts themselves; tables and JSON.

over seeds    Student's 95 % intervals of accuracies and of their differences, paired by seed (realdata.trajectories.runs)
over experts  Student's 95 % intervals of the errors, each expert's the mean over the seeds of the sets; methods are paired by the
              expert's number, for experts of one number share start and batches: exp of the mean of log ratios where what is compared is
              positive, else the mean difference. The sets stay as they are: these intervals hold no spread of the distillation
"""

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from realdata.compare.report import t_interval, verdict
from realdata.evaluate import OWN
from realdata.experts.quality import MEASURES
from realdata.trajectories.errors import LOSSES, NORMS, SHAKE, Curves, Retraced
from realdata.trajectories.runs import Finished
from sims.lab.laws import Interval
from sims.lab.report import Cell, markdown_table, number, with_interval

Record = Mapping[str, Any]

SHARES = {"accumulated": "way", "matching": "segment", "initialisation": "segment"}
QUANTITIES = {
    "accumulated": "accumulated error",
    "matching": "matching error",
    "initialisation": "initialisation error",
    "accumulated/way": "accumulated error / way of the expert so far",
    "matching/segment": "matching error / length of the segment",
    "initialisation/segment": "initialisation error / length of the segment",
    "excess": "excess held-out loss, going on from its own weights",
    "fresh": "excess held-out loss, each segment from the expert's snapshot",
    "shaken": f"rise of that loss by a start off by {SHAKE} of the segment",
}
ACCURACY_HEADERS = ("images a class", "set", "method", "seed by seed, %", "mean % [t]", "- random [t]")
DIFFERENCE_HEADERS = ("images a class", "network", "set", "what", "seeds", "difference [t]", "verdict")


def curve(found: Retraced, method: str, ipc: int, name: str) -> Curves:
    """One of QUANTITIES."""
    top, _, bottom = name.partition("/")
    own = found.curves(method, ipc, top)
    return Curves(own.values / found.curves(method, ipc, bottom).values, own.epochs, own.experts) if bottom else own


def over_experts(found: Curves, i: int) -> tuple[float, Interval | None]:
    """Mean at the i-th epoch, and its interval."""
    return float(found.values[:, i].mean()), t_interval(found.values[:, i])


def apart(a: Curves, b: Curves, i: int, *, ratio: bool) -> dict[str, Any] | None:
    """b against a at the i-th epoch over the experts of both; None where a ratio is asked of what is not positive, or none are shared."""
    shared = [k for k in a.experts if k in b.experts]
    x, y = (one.values[[one.experts.index(k) for k in shared], i] for one in (a, b))
    if not shared or (ratio and min(x.min(), y.min()) <= 0):
        return None
    values = np.log(y / x) if ratio else y - x
    interval = t_interval(values)
    record = {"value": float(values.mean()), "interval": interval, "verdict": verdict(interval)}
    if ratio:
        record |= {"value": math.exp(record["value"]), "interval": None if interval is None else tuple(map(math.exp, interval))}
    return record | {"of": "ratio" if ratio else "difference", "experts": len(shared)}


def by_epoch(found: Retraced, runs: Sequence[Finished]) -> Iterator[dict[str, Any]]:
    """One record for each size, quantity and epoch: every method's mean and interval, and each method against the first one."""
    for ipc in sorted({run.ipc for run in runs}):
        methods = list(dict.fromkeys(run.method for run in runs if run.ipc == ipc))
        for name in QUANTITIES:
            curves = {method: curve(found, method, ipc, name) for method in methods}
            yield from ({"ipc": ipc} | one for one in _records(name, curves, ratio=name not in LOSSES))


def of_experts(found: Retraced) -> Iterator[dict[str, Any]]:
    """The same for the experts' own measures."""
    for name in MEASURES:
        yield from _records(name, {method: found.of_experts(method, name) for method in found.quality}, ratio=name != "accuracy")


def matching_pace(plain: Curves, flat: Curves) -> float | None:
    """The factor on the pace of the flat experts at which they would fit as well as the plain ones: the median over epochs e > 0 of e / e'.

    e' is the epoch at which the plain ones' mean training loss, linear between the epochs of a new minimum, is that of the flat ones at e;
    epochs e whose loss lies outside are left out, None where all are. Derived here.
    """
    loss, other, epochs = plain.values.mean(axis=0), flat.values.mean(axis=0), np.array(flat.epochs)
    new = np.append(True, loss[1:] < np.minimum.accumulate(loss)[:-1])
    inside = (other < loss[0]) & (other >= loss.min()) & (epochs > 0)
    if not inside.any():
        return None
    return float(np.median(epochs[inside] / np.interp(-other[inside], -loss[new], np.array(plain.epochs)[new])))


def paces(found: Retraced) -> dict[str, float | None]:
    """That factor for every method but the first."""
    curves = {method: one for method in found.quality if len((one := found.of_experts(method, "train_loss")).experts)}
    return {method: matching_pace(next(iter(curves.values())), curves[method]) for method in list(curves)[1:]}


def _records(name: str, curves: Mapping[str, Curves], *, ratio: bool) -> Iterator[dict[str, Any]]:
    known = {method: one for method, one in curves.items() if len(one.experts)}
    if not known:
        return
    (first, base), *others = known.items()
    for i, epoch in enumerate(base.epochs):
        record: dict[str, Any] = {"quantity": name, "epoch": epoch, "methods": {}, "apart": {}}
        for method, one in known.items():
            if one.epochs == base.epochs:
                mean, interval = over_experts(one, i)
                record["methods"][method] = {"mean": mean, "interval": interval, "experts": len(one.experts)}
        for method, one in others:
            if one.epochs == base.epochs:
                record["apart"][f"{method}, {first}"] = apart(base, one, i, ratio=ratio)
        yield record


def architecture_table(found: Sequence[Record]) -> str:
    """The networks that the sets were not made with: a row each, a column for each method and kind of set."""
    others = {(x["ipc"], x["network"], x["method"], x["set"]): x for x in found if x["network"] != OWN}
    columns = list(dict.fromkeys(name[2:] for name in others))
    rows: list[list[Cell]] = []
    for head in dict.fromkeys(name[:2] for name in others):
        own = [others.get((*head, *column)) for column in columns]
        rows.append([*head, *("-" if x is None else with_interval(x["mean"], x["interval"], 1) for x in own)])
    return markdown_table(("images a class", "network", *(f"{method}, {kind}" for method, kind in columns)), rows) if rows else ""


def accuracy_rows(found: Sequence[Record]) -> list[list[Cell]]:
    """Under ACCURACY_HEADERS: training the network that the sets were made with."""
    return [
        [
            x["ipc"],
            x["set"],
            x["method"],
            ", ".join(f"{a:.1f}" for a in x["accuracies"]),
            with_interval(x["mean"], x["interval"], 1),
            with_interval(x.get("above_random"), x.get("above_random_interval"), 1),
        ]
        for x in found
        if x["network"] == OWN
    ]


def difference_rows(found: Sequence[Record]) -> list[list[Cell]]:
    """Under DIFFERENCE_HEADERS."""
    return [
        [
            x["ipc"],
            x["network"],
            x["set"],
            " - ".join(reversed(x["methods"])),
            ", ".join(map(str, x["seeds"])),
            with_interval(x["difference"], x["difference_interval"]),
            x["verdict"],
        ]
        for x in found
    ]


def ends(found: Sequence[Record], reach: Mapping[int, int]) -> list[Record]:
    """The records at the last epoch that a segment was drawn to, and at the last of all."""
    kept = {}
    for ipc, limit in reach.items():
        epochs = sorted({x["epoch"] for x in found if x["ipc"] == ipc})
        kept[ipc] = {max((e for e in epochs if e <= limit), default=epochs[0]), epochs[-1]} if epochs else set()
    return [x for x in found if x["epoch"] in kept[x["ipc"]]]


def epoch_table(found: Sequence[Record], words: Mapping[str, str]) -> str:
    """A row a record, a column a method and one for each pair."""
    methods = list(dict.fromkeys(name for x in found for name in x["methods"]))
    pairs = list(dict.fromkeys(name for x in found for name in x["apart"]))
    sized = ["images a class"] if any("ipc" in x for x in found) else []
    rows: list[list[Cell]] = []
    for x in found:
        own = [x["methods"].get(method) for method in methods]
        against = [x["apart"].get(pair) for pair in pairs]
        rows.append(
            [
                *([x["ipc"]] if sized else []),
                words[x["quantity"]],
                number(x["epoch"]),
                *("-" if one is None else with_interval(one["mean"], one["interval"], 3) for one in own),
                *("-" if one is None else f"{one['of']} {with_interval(one['value'], one['interval'], 3)}" for one in against),
            ]
        )
    return markdown_table((*sized, "quantity", "epoch", *methods, *(f"{pair} [t]" for pair in pairs)), rows)


def report(summary: Record, reach: Mapping[int, int]) -> str:
    """report.md."""
    parts = [
        f"# Trajectory matching: {', '.join(summary['methods'])}\n",
        f"{summary['dataset']}, {summary['network']}; runs {', '.join(summary['runs'])}. Nothing was chosen on the test split: a set by "
        "held-out accuracy among the measurements of its run, its training length likewise.\n",
        "## Accuracy on the test split\n",
        "Means over the fresh networks of each evaluation; intervals are Student's 95 % over seeds, differences paired by seed. Random "
        "real images at the same count are trained with each set's own step size; they are the same images in every evaluation, so "
        "differences to them hold no spread of those draws. All seeds retrace the same experts, and all evaluations start from the "
        "same networks: no interval holds the spread of either. `ema`: the running average of the images, chosen by itself.\n",
        markdown_table(ACCURACY_HEADERS, accuracy_rows(summary["accuracies"])),
        markdown_table(DIFFERENCE_HEADERS, difference_rows(summary["differences"])) if summary["differences"] else "",
        f"Other networks, means in per cent:\n\n{others}" if (others := architecture_table(summary["accuracies"])) else "",
        "![Accuracies](figures/accuracy.png)\n",
    ]
    if summary["errors"]:
        told = ", ".join(f"{epoch} at {ipc} a class" for ipc, epoch in reach.items())
        parts += [
            "## Errors along the experts\n",
            "A student is trained on the set from an expert's start, T steps for each M epochs, and goes on from its own weights; beside "
            "it one that starts every segment at the expert's snapshot. As vectors, accumulated = accumulated before + initialisation + "
            "matching. "
            f"The last epoch that a segment was drawn to: {told}; what comes after it the set never met. Means and Student's 95 % over "
            "experts, the sets as they are; ratios and differences are paired by expert.\n",
            epoch_table(ends(summary["errors"], reach), QUANTITIES),
            f"Diverged on the way: {summary['diverged']} of {summary['retraced']} students.\n",
            "![Errors by epoch](figures/errors.png)\n",
        ]
    if summary["experts"]:
        parts += [
            "## The experts\n",
            "Loss, sharpness and largest eigenvalue on the same training images for all; accuracy on held-out images.\n",
            epoch_table(summary["experts"], MEASURES),
            *(
                f"By their training losses the experts of {method} would fit as well as those of {summary['methods'][0]} at {pace:.2f} "
                "times their present `--pace`.\n"
                for method, pace in summary["paces"].items()
                if pace is not None
            ),
        ]
    return "\n".join(part for part in parts if part)


def summary_json(summary: Record) -> str:
    """summary.json."""
    return json.dumps(summary, indent=1, allow_nan=False) + "\n"


def accuracy_csv(found: Sequence[Record]) -> str:
    """A row a set and seed."""
    rows = [(x["ipc"], x["network"], x["set"], x["method"], s, a) for x in found for s, a in zip(x["seeds"], x["accuracies"], strict=True)]
    return _csv(("ipc", "network", "set", "method", "seed", "accuracy"), rows)


def errors_csv(found: Retraced) -> str:
    """A row a run, expert and epoch, raw."""
    names = (*NORMS, *dict.fromkeys(SHARES.values()), *LOSSES)
    rows = [
        (run.method, run.ipc, run.seed, row["expert"], epoch, *(row[name][i] for name in names))
        for run, row in found.rows
        if row["failed"] is None
        for i, epoch in enumerate(row["epochs"])
    ]
    return _csv(("method", "ipc", "seed", "expert", "epoch", *names), rows)


def _csv(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    stream = io.StringIO()
    table = csv.writer(stream, lineterminator="\n")
    table.writerows([head, *rows])
    return stream.getvalue()
