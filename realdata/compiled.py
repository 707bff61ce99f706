"""Functions of nested tuples of tensors made faster for one machine: compiled, and on a GPU replayed as a graph; and an optimiser made so.

An eager step of Adam reads and writes the parameters some fourteen times, its adjoint some forty times, a kernel each; compiled, both
are a pass over what they need. The numbers agree to rounding.
"""

import inspect
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx.experimental.proxy_tensor import make_fx

from theory.distill.inner_optim import Cotangents, InnerOptimiser, Slots
from theory.distill.leaves import Leaves


def compiler_here(device: torch.device) -> bool:
    """Whether code can be compiled for the device: on a processor that takes a C++ compiler ($CXX, g++ or clang++)."""
    return device.type == "cuda" or any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))


def each(f: Callable[[torch.Tensor], Any], x: Any) -> Any:
    """f on every tensor of nested tuples; None stays."""
    return None if x is None else tuple(each(f, y) for y in x) if isinstance(x, tuple) else f(x)


def fused(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function compiled for each shape of its arguments, with what lies between contractions fused."""
    # Each function by itself; before torch 2.13 all of a process share a limit of 8.
    apart: dict[str, Any] = {"isolate_recompiles": True} if "isolate_recompiles" in inspect.signature(torch.compile).parameters else {}
    whole = torch.compile(function, fullgraph=True, dynamic=False, **apart)
    return lambda *args: whole(*each(torch.detach, args))


def _by_shape(build: Callable[[Any], Callable[..., Any]]) -> Callable[..., Any]:
    """A function that `build` makes from the first arguments of each shape."""
    built: dict[Any, Callable[..., Any]] = {}

    def run(*args: Any) -> Any:
        shapes = each(lambda x: (x.shape, x.dtype), args)
        if shapes not in built:
            built[shapes] = build(args)
        return built[shapes](*args)

    return run


def traced(function: Callable[..., Any]) -> Callable[..., Any]:
    """`fused` for code that serves any array library, which torch's compiler cannot read: it is run once, and what it did is compiled."""
    # Arguments that are one tensor in the first call need not be one in the next.
    return _by_shape(lambda args: fused(make_fx(function)(*each(torch.clone, args))))


def _flat(x: Any) -> list[torch.Tensor]:
    return [] if x is None else [z for y in x for z in _flat(y)] if isinstance(x, tuple) else [x]


def put(places: Any, values: Any) -> None:
    """Copies nested tuples of tensors into others: a launch for each kind of number, not one a tensor."""
    kinds: dict[torch.dtype, tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
    for place, x in zip(_flat(places), _flat(values), strict=True):
        into, source = kinds.setdefault(place.dtype, ([], []))
        into.append(place)
        source.append(x.detach())
    for into, source in kinds.values():
        torch._foreach_copy_(into, source)


def replayed(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function recorded as one CUDA graph for each shape of its arguments, then replayed: one launch a call, no word to the host."""

    def record(args: Any) -> Callable[..., Any]:
        held, graph, beside = each(lambda x: x.detach().clone(), args), torch.cuda.CUDAGraph(), torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(3):
                function(*held)
        torch.cuda.current_stream().wait_stream(beside)
        with torch.cuda.graph(graph):
            out = function(*held)

        def replay(*args: Any) -> Any:
            put(held, args)
            graph.replay()
            own = each(torch.empty_like, out)  # the graph's own are written anew by its next replay
            put(own, out)
            return own

        return replay

    return _by_shape(record)


@dataclass(frozen=True, eq=False)
class CompiledOptimiser:
    """The optimiser with its step, its adjoint and the recovery of gradients compiled, on a GPU replayed as CUDA graphs.

    Its settings are part of the code: one whose step size is learned would be compiled anew at every update.
    """

    optimiser: InnerOptimiser
    device: torch.device
    _functions: dict[str, Callable[..., Any]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        def made(function: Callable[..., Any]) -> Callable[..., Any]:
            return replayed(traced(function)) if self.device.type == "cuda" else traced(function)

        of = self.optimiser
        functions = {
            "step": made(lambda theta, slots, t, g: of.step(theta, slots, t, g)),
            "recovered": made(lambda theta, slots, after: of.recovered(theta, slots, after)),
            "adjoint": made(lambda theta, slots, t, g, lam, mu: tuple(of.adjoint(theta, slots, t, g, lam, mu))),
        }
        object.__setattr__(self, "_functions", functions)

    @property
    def lr(self) -> float:
        """The step size."""
        return self.optimiser.lr

    def init(self, theta: Leaves) -> Slots:
        return self.optimiser.init(theta)

    def step(self, theta: Leaves, slots: Slots, t: int, g: Leaves) -> tuple[Leaves, Slots]:
        return self._functions["step"](theta, slots, self._clock(t), g)

    def recovered(self, theta: Leaves, slots: Slots, slots_next: Slots) -> Leaves | None:
        return self._functions["recovered"](theta, slots, slots_next)

    def adjoint(self, theta: Leaves, slots: Slots, t: int, g: Leaves, lam: Leaves, mu: Slots) -> Cotangents:
        return Cotangents(*self._functions["adjoint"](theta, slots, self._clock(t), g, lam, mu))

    def _clock(self, t: int) -> torch.Tensor:
        """t as data: as a number it would be part of the code."""
        return torch.full((), t, dtype=torch.float64, device=self.device)


def compiled_optimiser(optimiser: InnerOptimiser, device: torch.device) -> InnerOptimiser:
    """The optimiser compiled, where a compiler is found and it keeps slots; plain descent is two passes as it is."""
    with_slots = bool(optimiser.init((torch.zeros(1, device=device),)))
    return CompiledOptimiser(optimiser, device) if with_slots and compiler_here(device) else optimiser
