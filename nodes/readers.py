"""Layers whose weights a model reads without calling them: what stands in such a layer's forward
would never run.

Found in the source of the model's own classes, not by a list of models: a layer handed to a
function that reads a layer's weight, or whose `weight` is taken for more than its shape. ComfyUI's
`comfy.ops.linear_input_act` is left out, because beside.py stands in its place; under any other
name it is not. So are functions of a model's own file that may decline (`None`, whereupon their
callers call the layers): beside.py has them do so.
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
# Of what a plain function reads the weight: the place of an argument, and the path from there.
Arguments = frozenset[tuple[int, Steps]]


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
                    for path in _read_in(function, partial(_read_by_helper, one.__module__))
                    if path[0] == own and path[1:]
                }
    return frozenset(paths)


def helpers_of(model: torch.nn.Module) -> frozenset[tuple[str, str]]:
    """(module, name) of the functions in the files of the model's classes that read weights of what
    they are given, and may decline.
    """
    files = {one.__module__ for made in set(map(type, model.modules())) for one in made.__mro__}
    return frozenset((file, name) for file in files for name in _declining(file))


@cache
def _declining(module: str) -> frozenset[str]:
    """The plain functions of a module that read a weight and may give None, which every caller in
    the module asks for: the layers are called then.
    """
    tree = _tree_of(module)
    if tree is None or module.partition(".")[0] in ("torch", "builtins") or module == "comfy.ops":
        return frozenset()
    asked = {id(call) for node in ast.walk(tree) for call in _asked_for_none(node)}
    called: dict[str, list[bool]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            called.setdefault(node.func.id, []).append(id(node) in asked)
    return frozenset(
        name
        for name, function in _defined_in(module).items()
        if all(called.get(name, [False]))
        and any(_gives_none(node) for node in ast.walk(function))
        and _arguments_read(module, name)
    )


def _gives_none(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Return)
        and isinstance(node.value, ast.Constant)
        and node.value.value is None
    )


def _asked_for_none(function: ast.AST) -> Iterator[ast.Call]:
    """Calls whose result goes into a variable that this function compares with None."""
    if not isinstance(function, ast.FunctionDef):
        return
    compared = {
        node.left.id
        for node in ast.walk(function)
        if isinstance(node, ast.Compare)
        and isinstance(node.left, ast.Name)
        and isinstance(node.ops[0], (ast.Is, ast.IsNot))
    }
    for target, value in _assigned(function):
        value = value.body if isinstance(value, ast.IfExp) else value
        if target in compared and isinstance(value, ast.Call):
            yield value


def _assigned(function: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """What is assigned to plain names in this code."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            yield node.targets[0].id, node.value


@cache
def _arguments_read(module: str, name: str) -> Arguments:
    """What a plain function of a module reads the weight of itself."""
    function = _defined_in(module).get(name)
    if not isinstance(function, ast.FunctionDef):
        return frozenset()
    places = {argument.arg: place for place, argument in enumerate(function.args.args)}
    read = _read_in(function, lambda name: frozenset())
    return frozenset((places[path[0]], path[1:]) for path in read if path[0] in places)


def _read_by_helper(module: str, name: str) -> Arguments:
    """What a call of a plain function reads; nothing of one that declines."""
    return frozenset() if name in _declining(module) else _arguments_read(module, name)


@cache
def _defined_in(module: str) -> dict[str, ast.AST]:
    """The classes, by qualified name, and functions of a module; none where its source is not at
    hand.
    """
    tree = _tree_of(module)
    return {} if tree is None else dict(_named(tree, ""))


@cache
def _tree_of(module: str) -> ast.Module | None:
    path = getattr(sys.modules.get(module), "__file__", None) or ""
    try:
        return ast.parse(Path(path).read_bytes()) if path.endswith(".py") else None
    except (OSError, SyntaxError, ValueError):
        return None


def _named(tree: ast.AST, before: str) -> Iterator[tuple[str, ast.AST]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef):
            yield before + node.name, node
            yield from _named(node, f"{before}{node.name}.")
        elif isinstance(node, ast.FunctionDef) and not before:
            yield node.name, node
        elif isinstance(node, (ast.If, ast.Try)):
            yield from _named(node, before)


def _read_in(function: ast.AST, helper: Callable[[str], Arguments]) -> set[Steps]:
    """Paths, from a name on, to what has its weight read in this code; helper: a plain function's
    name -> what it reads of its arguments.
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
                    before and (*before, *end)
                    for place, end in helper(called[0])
                    if place < len(node.args)
                    for before in [_path(node.args[place])]
                )
    names = {target: path for target, value in _assigned(function) if (path := _path(value))}
    return {(*names.get(path[0], path[:1]), *path[1:]) for path in paths if path}


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
