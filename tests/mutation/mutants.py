"""Makes small faults in a module's text: each is one place, what stands there instead, and the
lines that a test must run to meet it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import NamedTuple


class Mutant(NamedTuple):
    """One fault: text[start:end] becomes `instead`. `lines`: those of the statement or function it
    is in, numbered from 1.
    """

    start: int
    end: int
    instead: str
    lines: range
    function: str  # the qualified name of the function or class; "" at the module's own level
    statement: int  # which of the module's statements it is in
    at_import: bool  # whether it is met when the module is imported, not when a function is called

    def put_into(self, text: str) -> str:
        return text[: self.start] + self.instead + text[self.end :]

    def difference(self, text: str) -> tuple[str, str]:
        """The lines it changes, before and after, without what stands before and behind them."""
        first, last = text.rfind("\n", 0, self.start) + 1, text.find("\n", self.end)
        before, after = (
            text[first:last],
            text[first : self.start] + self.instead + text[self.end : last],
        )
        return " ".join(before.split()), " ".join(after.split())


SHIFTED = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
}
SWAPPED_OPERATORS = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "*"),
    ast.Pow: ("**", "*"),
    ast.BitOr: ("|", "&"),
    ast.BitAnd: ("&", "|"),
    ast.LShift: ("<<", ">>"),
    ast.RShift: (">>", "<<"),
}
SWAPPED_NAMES = {"all": "any", "any": "all", "min": "max", "max": "min", "sorted": "list"}
SWAPPED_METHODS = {
    "startswith": "endswith",
    "endswith": "startswith",
    "find": "rfind",
    "rfind": "find",
    "partition": "rpartition",
    "rpartition": "partition",
    "split": "rsplit",
    "rsplit": "split",
    "match": "search",
    "issubset": "issuperset",
    "issuperset": "issubset",
    "all": "any",
    "any": "all",
}
WITHOUT = frozenset(
    {
        "lower",
        "strip",
        "lstrip",
        "rstrip",
        "flatten",
        "contiguous",
        "clamp",
        "abs",
        "detach",
        "cpu",
        "copy",
    }
)
NEVER = (
    ast.JoinedStr,
    ast.Raise,
    ast.Import,
    ast.ImportFrom,
    ast.Nonlocal,
    ast.Global,
)  # texts for people, and what only names


def mutants_of(text: str) -> list[Mutant]:
    """All faults of a module's text, in the order of the text; each is valid Python. The text is
    ASCII.
    """
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found = {}
    for number, statement in enumerate(ast.parse(text).body):
        for mutant in _Maker(text, starts, number).of_statement(statement, ""):
            before, after = mutant.difference(text)
            if before != after and _is_valid(mutant.put_into(text)):
                found[mutant.start, mutant.end, mutant.instead] = mutant
    return sorted(found.values())


def _is_valid(text: str) -> bool:
    try:
        compile(text, "mutant", "exec")
    except SyntaxError:
        return False
    return True


class _Maker:
    """Makes the mutants of one statement of a module."""

    def __init__(self, text: str, starts: list[int], number: int):
        self.text, self.starts, self.number = text, starts, number
        self.lines, self.function, self.at_import = range(0), "", True

    def of_statement(
        self, node: ast.stmt, function: str, at_import: bool = True
    ) -> Iterator[Mutant]:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            name = f"{function}.{node.name}".lstrip(".")
            self.lines, self.function, self.at_import = (
                range(node.lineno, node.end_lineno + 1),
                name,
                at_import,
            )
            if isinstance(node, ast.FunctionDef):
                for default in (*node.args.defaults, *node.args.kw_defaults):
                    yield from self.of_expression(default)
            for inner in node.body:
                yield from self.of_statement(
                    inner, name, at_import and isinstance(node, ast.ClassDef)
                )
            return
        inner = [
            part for field in ("body", "orelse", "finalbody") for part in getattr(node, field, ())
        ]
        inner += [part for handler in getattr(node, "handlers", ()) for part in handler.body]
        last = min([part.lineno - 1 for part in inner], default=node.end_lineno)
        self.lines, self.function, self.at_import = (
            range(node.lineno, max(last, node.lineno) + 1),
            function,
            at_import,
        )
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and node.targets[0].id == "__all__"
        ):
            return  # ruff tells of names there that are none
        yield from self._whole(node)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            return  # a docstring
        if not function and isinstance(node, ast.Assign) and _is_limit(node.value):
            yield from (
                self._instead(node.value, str(value))
                for value in (node.value.value * 10, node.value.value // 10)
            )
            return
        for child in ast.iter_child_nodes(node):
            if (
                isinstance(child, ast.expr)
                and not isinstance(node, NEVER)
                and child is not getattr(node, "annotation", None)
            ):
                yield from self.of_expression(child)
            elif isinstance(child, ast.withitem):
                yield from self.of_expression(child.context_expr)
        for handler in getattr(node, "handlers", ()):
            yield from self._handler(handler)
        for part in inner:
            yield from self.of_statement(part, function, at_import)

    def _whole(self, node: ast.stmt) -> Iterator[Mutant]:
        """Faults of a whole statement: it is not there, or its condition is settled."""
        call = isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant)
        stored = isinstance(node, ast.Assign) and any(
            isinstance(target, (ast.Attribute, ast.Subscript)) for target in node.targets
        )
        if call or stored or isinstance(node, (ast.AugAssign, ast.Delete)):
            yield self._instead(node, "pass")
        elif isinstance(node, ast.Continue):
            yield self._instead(node, "break")
        elif isinstance(node, ast.Break):
            yield self._instead(node, "continue")
        if isinstance(node, (ast.If, ast.While)):
            yield from self._settled(
                node.test, "False", *(() if isinstance(node, ast.While) else ("True",))
            )

    def _settled(self, test: ast.expr, *values: str) -> Iterator[Mutant]:
        for value in values:
            yield self._instead(test, value)

    def _handler(self, handler: ast.ExceptHandler) -> Iterator[Mutant]:
        """A kind of exception that is not caught."""
        kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else ()
        self.lines = range(handler.lineno, handler.lineno + 1)
        for kind in kinds:
            yield self._instead(kind, "ZeroDivisionError")

    def of_expression(self, node: ast.AST | None) -> Iterator[Mutant]:
        if node is None or isinstance(node, NEVER):
            return
        make = getattr(self, f"_of_{type(node).__name__.lower()}", None)
        if make is not None:
            yield from make(node)
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.keyword) and child.arg == "strict":
                continue  # zip's safety net: where lengths may differ, other things are wrong first
            if isinstance(child, ast.comprehension):
                for condition in child.ifs:
                    yield from self._settled(condition, "True", "False")
            yield from self.of_expression(child)

    def _of_compare(self, node: ast.Compare) -> Iterator[Mutant]:
        sides = [node.left, *node.comparators]
        for left, operator, right in zip(sides, node.ops, sides[1:], strict=False):
            yield from self._between(left, right, *SHIFTED[type(operator)])

    def _of_boolop(self, node: ast.BoolOp) -> Iterator[Mutant]:
        for operand in node.values:
            yield self._instead(operand, "True" if isinstance(node.op, ast.And) else "False")

    def _of_ifexp(self, node: ast.IfExp) -> Iterator[Mutant]:
        yield from self._settled(node.test, "True", "False")

    def _of_unaryop(self, node: ast.UnaryOp) -> Iterator[Mutant]:
        yield self._instead(node, self._text(node.operand))

    def _of_binop(self, node: ast.BinOp) -> Iterator[Mutant]:
        if not any(
            isinstance(side, ast.JoinedStr) or _is_text(side) for side in (node.left, node.right)
        ):
            yield from self._between(
                node.left, node.right, *SWAPPED_OPERATORS.get(type(node.op), ("", ""))
            )
        if isinstance(node.op, ast.Mult):
            for side in (node.left, node.right):
                if _is_number(side):
                    yield self._instead(side, f"{side.value * 10!r}")

    def _of_constant(self, node: ast.Constant) -> Iterator[Mutant]:
        value = node.value
        if isinstance(value, bool):
            yield self._instead(node, str(not value))
        elif isinstance(value, int):
            yield self._instead(node, str(value + 1))
            if value:
                yield self._instead(node, str(value - 1))
        elif isinstance(value, float):
            yield self._instead(node, repr(value * 10 or 1.0))
            yield self._instead(node, repr(value / 10 or -1.0))
        elif isinstance(value, str) and " " not in value.strip():
            yield self._instead(node, '""' if value else '"mutant"')
        elif isinstance(value, bytes):
            yield self._instead(node, 'b""' if value else 'b"mutant"')

    def _of_slice(self, node: ast.Slice) -> Iterator[Mutant]:
        for bound in (node.lower, node.upper):
            if bound is not None:
                yield self._instead(bound, "")

    def _of_call(self, node: ast.Call) -> Iterator[Mutant]:
        function = node.func
        if isinstance(function, ast.Name) and function.id in SWAPPED_NAMES:
            if function.id != "sorted" or len(node.args) == 1 == len(node.args) + len(
                node.keywords
            ):
                yield self._instead(function, SWAPPED_NAMES[function.id])
            else:
                yield self._instead(node, f"list({self._text(node.args[0])})")
        elif isinstance(function, ast.Attribute) and function.attr in SWAPPED_METHODS:
            end = self._end(function)
            yield self._mutant(end - len(function.attr), end, SWAPPED_METHODS[function.attr])
        elif isinstance(function, ast.Attribute) and function.attr in WITHOUT:
            yield self._mutant(self._end(function.value), self._end(node), "")

    def _between(self, left: ast.expr, right: ast.expr, old: str, new: str) -> Iterator[Mutant]:
        position = self.text.find(old, self._end(left), self._start(right)) if old else -1
        if position >= 0:
            yield self._mutant(position, position + len(old), new)

    def _instead(self, node: ast.AST, instead: str) -> Mutant:
        return self._mutant(self._start(node), self._end(node), instead)

    def _mutant(self, start: int, end: int, instead: str) -> Mutant:
        return Mutant(start, end, instead, self.lines, self.function, self.number, self.at_import)

    def _text(self, node: ast.AST) -> str:
        return self.text[self._start(node) : self._end(node)]

    def _start(self, node: ast.AST) -> int:
        return self.starts[node.lineno - 1] + node.col_offset

    def _end(self, node: ast.AST) -> int:
        return self.starts[node.end_lineno - 1] + node.end_col_offset


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, (str, bytes))


def _is_limit(node: ast.expr) -> bool:
    """Whether it is a number that may be a little more or less: how many names are remembered, how
    long a text may be.
    """
    return isinstance(node, ast.Constant) and type(node.value) is int and node.value > 5


def _is_number(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) in (int, float)
