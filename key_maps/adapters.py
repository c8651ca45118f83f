"""Which roles make which adapter, and the shape of the module an adapter was trained on, from tensor shapes alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from math import prod
from typing import NamedTuple

from .errors import LocksmithError

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]


class Misfit(LocksmithError, ValueError):
    """Tensors of one adapter that do not fit each other."""


class ModuleShape(NamedTuple):
    """Output rows and inner dimensions of the trained module; None: the tensors do not tell. `flat`: inner dims are one product."""

    out: int | None
    inner: Shape | None
    flat: bool = False


class Kind(NamedTuple):
    """An adapter kind: any of the role sets in `needs` makes it; `takes` are roles it uses where present."""

    name: str
    needs: tuple[frozenset[str], ...]
    takes: frozenset[str]
    shape: Callable[[Shapes], ModuleShape]
    reaches: str = "weight"  # or "bias", or "both": which parameters of the module it changes
    linear: bool = True
    refusal: str = ""


SPLIT_BLOCKS = frozenset({"oft_blocks.1", "oft_blocks.2", "oft_blocks.3"})
SPARSE_RESIDUAL = frozenset({"bias_indices", "bias_values", "bias_size"})
DECOMPOSED = frozenset({"alpha", "dora_scale", "magnitude", "scalar"})


def _lora(shapes: Shapes) -> ModuleShape:
    up, down, mid = shapes["up"], shapes["down"], shapes.get("mid")
    if len(up) < 2 or len(down) < 2:
        raise Misfit(f"up {list(up)} and down {list(down)} must have at least two dimensions")
    rank_up, rank_down = up[1], down[0]
    if mid is not None:
        if len(mid) < 3 or mid[0] != rank_up or mid[1] != rank_down:
            raise Misfit(f"up {list(up)}, mid {list(mid)} and down {list(down)} have different ranks")
        return ModuleShape(up[0], (down[1], *mid[2:]))
    if rank_up != rank_down:
        raise Misfit(f"up {list(up)} has rank {rank_up}, down {list(down)} has rank {rank_down}")
    return ModuleShape(up[0], down[1:])


def _loha(shapes: Shapes) -> ModuleShape:
    w1_a, w1_b = shapes["hada_w1_a"], shapes["hada_w1_b"]
    core = shapes.get("hada_t1")
    if core is not None:
        return ModuleShape(w1_a[-1], (w1_b[-1], *core[2:]))
    if len(w1_a) < 2 or len(w1_b) < 2 or w1_a[1] != w1_b[0]:
        raise Misfit(f"hada_w1_a {list(w1_a)} and hada_w1_b {list(w1_b)} have different ranks")
    # OneTrainer keeps the kernel of a convolution, LyCORIS flattens it.
    return ModuleShape(w1_a[0], w1_b[1:], flat=len(w1_b) == 2)


def _factor(shapes: Shapes, name: str) -> Shape:
    full, left, right = (shapes.get(name + end) for end in ("", "_a", "_b"))
    if full is not None:
        return full
    core = shapes.get("lokr_t2") if name == "lokr_w2" else None
    if left is None or right is None:
        raise Misfit(f"{name} is incomplete")
    if core is not None:
        return (left[-1], right[-1], *core[2:])
    if len(left) < 2 or len(right) < 2 or left[1] != right[0]:
        raise Misfit(f"{name}_a {list(left)} and {name}_b {list(right)} have different ranks")
    return (left[0], *right[1:])


def _lokr(shapes: Shapes) -> ModuleShape:
    first, second = _factor(shapes, "lokr_w1"), _factor(shapes, "lokr_w2")
    if len(first) < 2 or len(second) < 2:
        raise Misfit(f"the factors {list(first)} and {list(second)} must be matrices")
    return ModuleShape(first[0] * second[0], (first[1] * second[1], *second[2:]), flat="lokr_w2" not in shapes)


def _blocks(role: str) -> Callable[[Shapes], ModuleShape]:
    def shape(shapes: Shapes) -> ModuleShape:
        blocks = shapes[role]
        if len(blocks) not in (3, 4) or blocks[-1] != blocks[-2]:
            raise Misfit(f"{role} {list(blocks)} must be square blocks")
        return ModuleShape(blocks[-3] * blocks[-1], None)

    return shape


def _split_blocks(shapes: Shapes) -> ModuleShape:
    parts = [shape for role, shape in shapes.items() if role.startswith("oft_blocks.")]
    if any(len(shape) != 3 or shape[-1] != shape[-2] for shape in parts):
        raise Misfit("oft_blocks must be square blocks")
    return ModuleShape(sum(shape[0] * shape[-1] for shape in parts), None)


def _first(role: str) -> Callable[[Shapes], ModuleShape]:
    def shape(shapes: Shapes) -> ModuleShape:
        whole = shapes[role]
        return ModuleShape(whole[0] if whole else None, whole[1:] if whole else None)

    return shape


def _unknown(_: Shapes) -> ModuleShape:
    return ModuleShape(None, None)


def _sets(*roles: str) -> tuple[frozenset[str], ...]:
    return tuple(frozenset(text.split()) for text in roles)


NO_BASE = "its base matrices are not in the file, so the change it makes cannot be rebuilt"
KINDS = (
    Kind("lora", _sets("down up"), DECOMPOSED | SPARSE_RESIDUAL | {"mid", "reshape", "initial_norm"}, _lora),
    Kind("loha", _sets("hada_w1_a hada_w1_b hada_w2_a hada_w2_b"), DECOMPOSED | {"hada_t1", "hada_t2"}, _loha),
    Kind(
        "lokr",
        _sets("lokr_w1 lokr_w2", "lokr_w1_a lokr_w1_b lokr_w2", "lokr_w1 lokr_w2_a lokr_w2_b", "lokr_w1_a lokr_w1_b lokr_w2_a lokr_w2_b"),
        DECOMPOSED | {"lokr_t2"},
        _lokr,
    ),
    Kind("glora", _sets("a1 a2 b1 b2"), DECOMPOSED, _unknown),
    Kind("oft", _sets("oft_blocks"), frozenset({"alpha", "rescale"}), _blocks("oft_blocks"), linear=False),
    Kind("oft_diag", _sets("oft_diag"), frozenset({"alpha", "rescale"}), _blocks("oft_diag"), linear=False),
    Kind("oft_kohya", _sets("oft_blocks.0"), SPLIT_BLOCKS | {"alpha"}, _split_blocks, linear=False),
    Kind("oft_peft", _sets("oft_R"), frozenset({"scaled_oft", "alpha"}), _unknown, linear=False),
    Kind("boft_peft", _sets("boft_R"), frozenset({"boft_s"}), _unknown, linear=False),
    Kind("ia3", _sets("weight on_input"), frozenset(), _unknown),
    Kind("ia3_peft", _sets("ia3_l"), frozenset(), _unknown, reaches="both"),
    Kind("diff", _sets("diff"), frozenset(), _first("diff")),
    Kind("norm", _sets("w_norm"), frozenset(), _first("w_norm")),
    Kind("set", _sets("set_weight"), frozenset(), _first("set_weight")),
    Kind("set", _sets("weight"), frozenset(), _first("weight")),
    Kind("bias_diff", _sets("diff_b"), frozenset(), _first("diff_b"), reaches="bias"),
    Kind("bias_norm", _sets("b_norm"), frozenset(), _first("b_norm"), reaches="bias"),
    Kind("bias_lora", _sets("up_bias"), frozenset({"down_bias"}), _first("up_bias"), reaches="bias"),
    Kind("bias_set", _sets("bias"), frozenset(), _first("bias"), reaches="bias"),
    Kind("vera", _sets("vera_d", "vera_b", "vera_d vera_b"), frozenset({"vera_A", "vera_B"}), _unknown, refusal=f"VeRA: {NO_BASE}"),
    Kind("tlora", _sets("tlora"), frozenset({"alpha"}), _unknown, refusal=f"T-LoRA: {NO_BASE}"),
    Kind("hra", _sets("hra_u"), frozenset(), _unknown, refusal="HRA (Householder reflection adaptation) is not supported"),
    Kind("poly", _sets("poly_lora"), frozenset(), _unknown, refusal="Poly mixes LoRAs by a router at run time, which a loader cannot do"),
)


class Assignment(NamedTuple):
    """One adapter found among the roles of a module."""

    kind: Kind
    roles: tuple[str, ...]


def assign(roles: Mapping[str, object]) -> tuple[tuple[Assignment, ...], tuple[str, ...]]:
    """Group the roles of one module into adapters; also returns the roles that belong to none."""
    return _assign(tuple(roles))


@lru_cache(maxsize=1024)
def _assign(roles: tuple[str, ...]) -> tuple[tuple[Assignment, ...], tuple[str, ...]]:
    left = dict.fromkeys(roles)
    found = []
    for kind in KINDS:
        needed = max((need for need in kind.needs if need <= left.keys()), key=len, default=None)
        if needed is not None:
            used = [role for role in left if role in needed or role in kind.takes]
            found.append(Assignment(kind, tuple(used)))
            for role in used:
                del left[role]
    return tuple(found), tuple(left)


def missing_roles(roles: Mapping[str, object]) -> str:
    """What the nearest adapter lacks, for the report: `lora_up` for a lone `down`."""
    best = max(
        (need for kind in KINDS for need in kind.needs if need & roles.keys()),
        key=lambda need: len(need & roles.keys()) / len(need),
        default=None,
    )
    return ", ".join(sorted(best - roles.keys())) if best else "a pair of factors (down and up)"


def fits(module: ModuleShape, out: int, inner: Shape) -> bool:
    """Whether an adapter trained on a module of this shape fits `out` rows with `inner` dimensions.

    A 1x1 convolution and a linear layer are the same thing; nothing else may be reshaped, except that LoHa and LoKr factors of
    a convolution are flat by design. A size of 0 is not known, and fits.
    """
    if module.out is not None and out and module.out != out:
        return False
    if module.inner is None or 0 in inner:
        return True
    if module.inner == inner:
        return True
    ours, theirs = _without_ones(module.inner), _without_ones(inner)
    if ours == theirs:
        return True
    return module.flat and prod(module.inner) == prod(inner)


def _without_ones(inner: Shape) -> Shape:
    end = len(inner)
    while end > 1 and inner[end - 1] == 1:
        end -= 1
    return inner[:end]
