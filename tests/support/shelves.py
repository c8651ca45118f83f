"""LoRA files of many kinds for the library page, of headers alone: zeros that take no space on the
disk.
"""

from __future__ import annotations

from pathlib import Path

from hollow_files import write_hollow

RANKS = (4, 8, 16, 32, 64)
FEED_FORWARD = (
    ("ff.net.0.proj", 12288),
    ("ff_context.net.0.proj", 12288),
    ("norm1.linear", 18432),
)  # only FLUX.1 has these
HOSTILE_NAME = "<img src=x onerror=alert(1)>.safetensors"
HOSTILE_WORD = "<script>document.title = 'taken'</script>"
ENDINGS = {
    "kohya": ("lora_down.weight", "lora_up.weight"),
    "peft": ("lora_A.weight", "lora_B.weight"),
}

# q and k, which FLUX.1 and others fuse with v, and others do not.
SHARED = {
    f"transformer.transformer_blocks.{block}.attn.{layer}.lora_{side}.weight": shape
    for block in range(2)
    for layer in ("to_q", "to_k")
    for side, shape in (("A", (2, 3072)), ("B", (3072, 2)))
}


def factors(modules: dict[str, tuple[int, int]], names: str, rank: int) -> dict[str, tuple]:
    """The tensors of a LoRA over modules of (outputs, inputs), in a tool's names."""
    down, up = ENDINGS[names]
    shapes: dict[str, tuple] = {}
    for module, (outputs, inputs) in modules.items():
        shapes |= {f"{module}.{down}": (rank, inputs), f"{module}.{up}": (outputs, rank)}
        shapes |= {f"{module}.alpha": ("F32",)} if names == "kohya" else {}
    return shapes


def flux(rank: int = 4, start: str = "transformer.", blocks: int = 19) -> dict[str, tuple]:
    names = {
        f"{start}transformer_blocks.{block}.{layer}": (out, 3072)
        for block in range(blocks)
        for layer, out in FEED_FORWARD
    }
    return factors(names, "peft", rank)


def flux_dora(rank: int) -> dict[str, tuple]:
    shapes = flux(rank)
    magnitudes = {
        name.replace("lora_B.weight", "lora_magnitude_vector"): shape[:1]
        for name, shape in shapes.items()
        if "lora_B" in name
    }
    return shapes | magnitudes


def sd15(rank: int) -> dict[str, tuple]:
    start = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_"
    sizes = {
        "attn1_to_q": (320, 320),
        "attn1_to_v": (320, 320),
        "attn2_to_k": (320, 768),
        "ff_net_0_proj": (2560, 320),
    }
    return factors({start + name: size for name, size in sizes.items()}, "kohya", rank)


def wan(rank: int) -> dict[str, tuple]:
    layers = ("self_attn.q", "self_attn.k", "cross_attn.v", "cross_attn.o")
    return factors(
        {
            f"diffusion_model.blocks.{block}.{name}": (1536, 1536)
            for block in range(30)
            for name in layers
        },
        "peft",
        rank,
    )


KINDS = {
    "flux": flux,
    "dora": flux_dora,
    "broken": lambda rank: flux(rank, "transformer.base_model.model."),
    "sd15": sd15,
    "wan": wan,
    "partly": (
        lambda rank: flux(rank) | factors({"transformer.no_such_layer.7": (64, 64)}, "peft", rank)
    ),
}


def write_kind(path: Path, kind: str, rank: int, metadata: dict[str, str] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_hollow(path, KINDS[kind](rank), metadata)


def write_shelf(folder: Path, count: int) -> list[Path]:
    """`count` files of every kind by turns, every 50th of which is no safetensors file at all."""
    written = []
    for number in range(count):
        kind = list(KINDS)[number % len(KINDS)]
        path = folder / f"set {number // 500}" / f"{kind} number {number}.safetensors"
        if number % 50 == 49:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"no LoRA at all")
        else:
            write_kind(
                path,
                kind,
                RANKS[number % len(RANKS)],
                {"ss_output_name": path.stem, "modelspec.trigger_phrase": f"word{number}"},
            )
        written.append(path)
    return written
