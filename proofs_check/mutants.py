"""Mutants of a module: every way of changing one sign, constant, exponent, index, comparison or logical word of its syntax tree.

    number    c -> c + 1, -c, 2 c               + <-> -,  * <-> /,  ** -> *,  // -> /,  -x -> x
    a < b     a <= b, a >= b  (and the like)    == <-> !=,  is <-> is not,  in <-> not in,  and <-> or,  not x -> x,  True <-> False

Left as they are: documentation, annotations, decorators, and what a `raise` says. So is what is no closed form: defaults of arguments and
of fields, and refusals (`__post_init__`, and an `if` that only raises); unit tests hold those.
"""

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SWAPS: dict[type, tuple[type, ...]] = {
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Div,),
    ast.Div: (ast.Mult,),
    ast.Pow: (ast.Mult,),
    ast.FloorDiv: (ast.Div,),
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.And: (ast.Or,),
    ast.Or: (ast.And,),
}
SKIPPED = {"annotation", "returns", "decorator_list", "bases", "type_params", "defaults", "kw_defaults"}


@dataclass(frozen=True)
class Mutant:
    """One change: where it is, its number among those of the module, and the statement before and after."""

    module: str
    function: str
    line: int
    before: str
    after: str
    number: int

    @property
    def key(self) -> tuple[str, str, str]:
        """(module, line text, altered text): what a reason is filed under, whatever the line's number."""
        return self.module, self.before, self.after

    @property
    def title(self) -> str:
        """One line."""
        return f"{self.function}:{self.line}: {self.before}  ->  {self.after}"


@dataclass(frozen=True)
class _Place:
    """A node that can be exchanged: the field (and index) of its parent, the statement and the function around it."""

    parent: ast.AST
    field: str
    index: int | None
    statement: ast.stmt
    function: str

    def get(self) -> Any:
        value = getattr(self.parent, self.field)
        return value if self.index is None else value[self.index]

    def put(self, node: Any) -> None:
        if self.index is None:
            setattr(self.parent, self.field, node)
        else:
            getattr(self.parent, self.field)[self.index] = node


def mutants(module: str, path: Path) -> Iterator[Mutant]:
    """Every mutant of the module's file, in the order of the text."""
    for number, (place, before, _) in enumerate(_changes(module, path)):
        yield Mutant(module, place.function, place.statement.lineno, before, _first_line(place.statement), number)


def source(mutant: Mutant, path: Path) -> str:
    """The whole module with that one change."""
    for number, (_, _, tree) in enumerate(_changes(mutant.module, path)):
        if number == mutant.number:
            return ast.unparse(tree)
    raise ValueError(f"{path} has no change number {mutant.number}: it is another version")


def _changes(module: str, path: Path) -> Iterator[tuple["_Place", str, ast.Module]]:
    """(place, statement before, the tree with the change) for each, the tree being mended after each."""
    tree = ast.parse(path.read_text())
    for place in list(_places(tree, module, None)):
        node = place.get()
        alternatives = list(_alternatives(node))
        before = _first_line(place.statement) if alternatives else ""
        for instead in alternatives:
            place.put(instead)
            yield place, before, tree
        place.put(node)


def functions(module: str, path: Path) -> tuple[str, ...]:
    """Dotted names of the functions that have mutants, in the order of the text."""
    places = _places(ast.parse(path.read_text()), module, None)
    return tuple(dict.fromkeys(place.function for place in places if next(_alternatives(place.get()), None) is not None))


def _places(node: ast.AST, function: str, statement: ast.stmt | None) -> Iterator[_Place]:
    if isinstance(node, ast.JoinedStr) or _refuses(node):
        return
    for field, value in ast.iter_fields(node):
        if field in SKIPPED:
            continue
        for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if not isinstance(child, ast.AST) or (isinstance(node, ast.ClassDef) and isinstance(child, ast.AnnAssign)):
                continue
            inside = f"{function}.{child.name}" if isinstance(child, ast.FunctionDef | ast.ClassDef) else function
            around = child if isinstance(child, ast.stmt) else statement
            if around is not None:
                yield _Place(node, field, index, around, inside)
            yield from _places(child, inside, around)


def _refuses(node: ast.AST) -> bool:
    """Whether all it does is to raise."""
    match node:
        case ast.If(body=body, orelse=[]):
            return all(isinstance(child, ast.Raise) for child in body)
        case ast.FunctionDef(name=name):
            return name == "__post_init__"
    return isinstance(node, ast.Raise)


def _alternatives(node: Any) -> Iterator[Any]:
    for swap in SWAPS.get(type(node), ()):
        yield swap()
    match node:
        case ast.Constant(value=bool() as value):
            yield ast.Constant(not value)
        case ast.Constant(value=int() | float() as value):
            yield ast.Constant(value + 1)
            if value:
                yield ast.UnaryOp(ast.USub(), ast.Constant(value))
            if value not in (0, 1, 1.0):
                yield ast.Constant(2 * value)
        case ast.UnaryOp(op=ast.USub() | ast.Not()):
            yield copy.deepcopy(node.operand)


def _first_line(statement: ast.stmt) -> str:
    """A simple statement whole, a compound one by its head."""
    lines = ast.unparse(statement).splitlines()
    return next(line for line in lines if not line.startswith("@"))
