"""Layers whose weights a model reads without calling them: what stands in such a layer's forward
would never run.

Found in the source of the model's own classes, not by a list of models: a layer handed to a
function that reads a layer's weight, or whose `weight` is taken for more than its shape. ComfyUI's
`comfy.ops.linear_input_act` is left out, because beside.py stands in its place; under any other
name it is not.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

# comfy/ops.py: these take a layer first and read its weight.
READERS = frozenset(("cast_bias_weight", "CastBiasWeightContext", "linear_input_act"))
GUARDED = ("comfy", "ops", "linear_input_act")
# What may be asked of a weight without reading it.
OUTSIDE = frozenset(
    [
        "shape",
        "dtype",
        "device",
        "ndim",
        "requires_grad",
        "size",
        "numel",
        "dim",
        "is_meta",
        "element_size",
    ]
)
ANY = "*"  # an index that the source does not tell

Steps = tuple[str, ...]


def layers_read(model: torch.nn.Module) -> frozenset[str]:
    """Names of the modules whose weight something else than their own forward reads."""
    names: set[str] = set()
    for name, module in model.named_modules():
        made: type = type(module)
        for path in _paths(made):
            names.update(
                ".".join((*name.split("."), *end) if name else end)
                for end in _reached(module, path)
            )
    return frozenset(names)


def _reached(module: Any, path: Steps) -> Iterator[Steps]:
    """The modules that a path from this one leads to, as paths without unknown indices."""
    if not path:
        if isinstance(getattr(module, "weight", None), torch.Tensor):
            yield ()
        return
    children = dict(module.named_children()) if isinstance(module, torch.nn.Module) else {}
    names = list(children) if path[0] == ANY else [path[0]] if path[0] in children else []
    for name in names:
        yield from ((name, *end) for end in _reached(children[name], path[1:]))


@cache
def _paths(made: type) -> frozenset[Steps]:
    """From a module of this class, the paths to modules whose weight its methods read."""
    paths: set[Steps] = set()
    for one in made.__mro__:
        if (
            one.__module__.partition(".")[0] in ("torch", "builtins")
            or one.__module__ == "comfy.ops"
        ):
            continue
        defined = _defined_in(one.__module__)
        for function in ast.walk(defined[one.__qualname__]) if one.__qualname__ in defined else ():
            if isinstance(function, ast.FunctionDef) and function.args.args:
                own = function.args.args[0].arg
                paths |= {
                    path[1:]
                    for path in _read_in(function, partial(_parameters_read, one.__module__))
                    if path[0] == own and path[1:]
                }
    return frozenset(paths)


@cache
def _parameters_read(module: str, name: str) -> frozenset[int]:
    """Places of the arguments of a plain function of a module whose weight it reads itself."""
    function = _defined_in(module).get(name)
    if not isinstance(function, ast.FunctionDef):
        return frozenset()
    read = {path[0] for path in _read_in(function, lambda name: frozenset()) if len(path) == 1}
    return frozenset(
        place for place, argument in enumerate(function.args.args) if argument.arg in read
    )


@cache
def _defined_in(module: str) -> dict[str, ast.AST]:
    """The classes, by qualified name, and functions of a module; none where its source is not at
    hand.
    """
    path = getattr(sys.modules.get(module), "__file__", None) or ""
    try:
        tree = ast.parse(Path(path).read_bytes()) if path.endswith(".py") else ast.Module([], [])
    except (OSError, SyntaxError, ValueError):
        return {}
    return dict(_named(tree, ""))


def _named(tree: ast.AST, before: str) -> Iterator[tuple[str, ast.AST]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef):
            yield before + node.name, node
            yield from _named(node, f"{before}{node.name}.")
        elif isinstance(node, ast.FunctionDef) and not before:
            yield node.name, node
        elif isinstance(node, (ast.If, ast.Try)):
            yield from _named(node, before)


def _read_in(function: ast.AST, helper: Callable[[str], frozenset[int]]) -> set[Steps]:
    """Paths, from a name on, to what has its weight read in this code; helper: a plain function's
    name -> `_parameters_read`.
    """
    harmless = {
        id(node.value)
        for node in ast.walk(function)
        if isinstance(node, ast.Attribute) and node.attr in OUTSIDE
    }
    harmless |= {
        id(node.left)
        for node in ast.walk(function)
        if isinstance(node, ast.Compare) and isinstance(node.ops[0], (ast.Is, ast.IsNot))
    }
    # torch.nn.init fills weights of a model that is yet to be trained.
    fills = [
        node
        for node in ast.walk(function)
        if isinstance(node, ast.Call) and "init" in (_path(node.func) or ())
    ]
    harmless |= {id(argument) for node in fills for argument in node.args}
    paths: set[Steps | None] = set()
    for node in ast.walk(function):
        if (
            isinstance(node, ast.Attribute)
            and node.attr == "weight"
            and isinstance(node.ctx, ast.Load)
            and id(node) not in harmless
        ):
            paths.add(_path(node.value))
        elif isinstance(node, ast.Call) and node.args:
            called = _path(node.func) or ()
            if called and called[-1] in READERS and called != GUARDED:
                paths.add(_path(node.args[0]))
            elif len(called) == 1:
                paths.update(
                    _path(node.args[place]) for place in helper(called[0]) if place < len(node.args)
                )
    return {path for path in paths if path}


def _path(node: ast.AST) -> Steps | None:
    """`self.a[2].b` as its parts; None for what is no such path."""
    if isinstance(node, ast.Name):
        return (node.id,)
    if isinstance(node, ast.Attribute):
        before = _path(node.value)
        return before and (*before, node.attr)
    if isinstance(node, ast.Subscript):
        before = _path(node.value)
        index = node.slice.value if isinstance(node.slice, ast.Constant) else None
        return before and (*before, str(index) if isinstance(index, (int, str)) else ANY)
    return None
