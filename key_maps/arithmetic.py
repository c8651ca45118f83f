"""Arithmetic that records write: numbers, names, + - * / **, square roots, and the shapes of an
adapter's tensors. Nothing else runs.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from ..adapters.setting import NUMBER, typed
from ..messages import message

Shapes = Mapping[str, Sequence[int] | None]

OPERATORS: Mapping[type, Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
FUNCTIONS: Mapping[str, Callable[..., float]] = {"sqrt": math.sqrt, "min": min, "max": max}
ON_SHAPES: Mapping[str, Callable[..., float]] = {
    "size": lambda shape, place: shape[place],
    "dims": len,
}
LARGEST = 1e30  # numbers beyond it are no settings that anybody trained with
FAILURES = (KeyError, IndexError, ZeroDivisionError, OverflowError, ValueError, TypeError)


def as_number(value: Any) -> float | None:
    """A value of a setting as a finite number: JSON numbers and texts of numbers; None for all
    else, booleans included.
    """
    number = typed(value, NUMBER)
    return number if number is not None and abs(number) <= LARGEST else None


class Expression:
    """`alpha / sqrt(rank)`; size(ROLE, n) is the n-th size of a tensor,
    dims(ROLE) how many it has.
    """

    def __init__(self, text: str):
        self.text = text
        self.tree = ast.parse(text.strip(), mode="eval").body
        self._check(self.tree)

    def __repr__(self) -> str:
        return f"Expression({ast.unparse(self.tree)!r})"

    def _check(self, node: ast.expr) -> None:
        """Raises ValueError for anything that is not arithmetic."""
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
            parts = [node.left, node.right]
        elif (
            isinstance(node, ast.Call)
            and _function(node) in {*FUNCTIONS, *ON_SHAPES}
            and node.args
            and not node.keywords
        ):
            parts = node.args
        elif isinstance(node, ast.Name) or (
            isinstance(node, ast.Constant) and type(node.value) in (int, float)
        ):
            parts = []
        else:
            known = ", ".join((*FUNCTIONS, *ON_SHAPES))
            raise ValueError(
                message("key_maps.no_arithmetic", text=ast.unparse(node), functions=known)
            )
        for part in parts:
            self._check(part)

    @cached_property
    def names(self) -> frozenset[str]:
        """The names it needs values of."""
        calls = [node for node in ast.walk(self.tree) if isinstance(node, ast.Call)]
        others = {id(call.func) for call in calls} | {
            id(call.args[0]) for call in calls if _function(call) in ON_SHAPES
        }
        return frozenset(
            node.id
            for node in ast.walk(self.tree)
            if isinstance(node, ast.Name) and id(node) not in others
        )

    @cached_property
    def on_shapes(self) -> bool:
        """Whether it asks for the shape of a tensor."""
        return any(
            isinstance(node, ast.Call) and _function(node) in ON_SHAPES
            for node in ast.walk(self.tree)
        )

    def value(self, values: Mapping[str, float], shapes: Shapes) -> float | None:
        """Its finite value; None where a name has no value, a tensor is not there, or the
        arithmetic fails.
        """
        try:
            result = _value(self.tree, values, shapes)
        except FAILURES:
            return None
        return (
            float(result) if isinstance(result, (int, float)) and abs(result) <= LARGEST else None
        )


def _function(call: ast.Call) -> str:
    return call.func.id if isinstance(call.func, ast.Name) else ""


def _value(node: ast.expr, values: Mapping[str, float], shapes: Shapes) -> Any:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        return values[node.id]
    if isinstance(node, ast.BinOp):
        return OPERATORS[type(node.op)](
            _value(node.left, values, shapes), _value(node.right, values, shapes)
        )
    assert isinstance(node, ast.Call)
    arguments = [
        _value(argument, values, shapes) for argument in node.args[_function(node) in ON_SHAPES :]
    ]
    if _function(node) in FUNCTIONS:
        return FUNCTIONS[_function(node)](*arguments)
    role = node.args[0]
    assert isinstance(role, ast.Name)
    return ON_SHAPES[_function(node)](shapes[role.id], *map(int, arguments))
