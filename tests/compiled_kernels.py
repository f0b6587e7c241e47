"""Compiles every Triton kernel for a GPU of one compute capability, without one: `compiled_kernels.py 90`."""

from __future__ import annotations

import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tokenprune_kernels.fused import attention, density, distance, greedy, prediction, retention, selection
from tokenprune_kernels.prediction import METRICS

WORDS = ("*i64", "*i32", "*u8") * 4  # as many as a stage with much in hand moves


def kernels():
    """Name, kernel, types of its arguments, and their constants: every branch once, not every mixture of them."""
    for scores, bits, counts in (
        ("fp32", 32, "*i64"),
        ("bf16", 32, None),
        ("fp64", 64, None),
        ("i64", 64, "*i64"),
        ("u8", 1, "*i64"),
    ):
        types = {"scores": f"*{scores}", "counts": counts, "index": "*i64", "n": "i32", "k": "i32", "stride": "i32"}
        yield f"top_k {scores}", selection._top_k, types, {"BLOCK": 1024, "BITS": bits}
    yield "places", selection._places, {"keep": "*u8", "take": "*i64", "length": "i32", "width": "i32"}, {"SCAN": 2048}
    many = ("i32",) * len(WORDS)
    types = {"take": "*i64", "sources": WORDS, "targets": WORDS, "batch_strides": many, "row_strides": many}
    yield "gather_rows", selection._gather_rows, types | {"words": many, "width": "i32"}, {"CHUNK": selection.CHUNK}
    for dtype, softcap, mean in (("fp32", "fp32", False), ("fp16", None, True), ("bf16", None, False)):
        types = {"query": f"*{dtype}", "key": f"*{dtype}", "rows": "*i64", "visible": "*u8"}
        types |= {"largest_of": "*fp32", "total_of": "*fp32"}
        sizes = {"query_strides": ("i32",) * 4, "key_strides": ("i32",) * 4}
        sizes |= dict.fromkeys(("heads", "group", "m", "keys", "e"), "i32")
        caps = {"scaling": "fp32", "softcap": softcap}
        tile = {"QUERIES": 2, "GROUP": 8, "KEYS": attention.KEYS, "WIDTH": 128}
        yield f"log_sums {dtype}", attention._log_sums, types | sizes | caps, tile | {"SPLIT": attention.SPLIT}
        types |= {"out": "*fp32"} | sizes | {"splits": "i32"} | caps
        yield f"paid {dtype}", attention._paid, types, tile | {"MEAN": mean, "SPLITS": 16}
    types = {"x": "*bf16", "scale": "*fp32", "out": "*fp32", "n": "i32", "d": "i32", "stride": "i32"}
    yield "cosine", distance._cosine, types, {"TILE": distance.TILE, "WIDTH": distance.WIDTH}
    for dtype, seeds, sums in (("fp32", "*i64", False), ("fp64", None, True), ("fp64", None, False)):
        types = {"distance": f"*{dtype}", "start": f"*{dtype}", "seeds": seeds, "picks": "*i64"}
        types |= dict.fromkeys("nkm", "i32")
        yield f"greedy {dtype}", greedy._greedy, types, {"SUMS": sums, "BLOCK": 8192}
    types = {"kernel": "*fp64", "fallback": "*fp64", "rows": "*fp64", "picks": "*i64", "n": "i32", "k": "i32"}
    yield "greedy_dpp", greedy._greedy_dpp, types | {"epsilon": "fp32"}, {"BLOCK": 1024}
    for dtype, there in (("fp32", None), ("fp64", "*u8")):
        types = {"distance": f"*{dtype}", "there": there, "dense": f"*{dtype}", "widest": f"*{dtype}", "n": "i32"}
        tile = {"ROWS": 8, "BLOCK": 256}
        yield f"densities {dtype}", density._densities, types | {"neighbours": "i32"}, tile
        yield f"gaps {dtype}", density._gaps, types | {"scores": f"*{dtype}"}, tile
    types = {"x": "*fp32", "stands": "*i32", **dict.fromkeys(("h", "w", "values"), "i32"), "tau": "fp32"}
    for metric, name in enumerate(METRICS):
        yield f"predict {name}", prediction._predict, types, {"METRIC": metric, "BLOCK": 4096}
    types = {"sources": ("*bf16",) * 2, "targets": ("*bf16",) * 2, "index": "*i64"}
    types |= {"strides": (("i32",) * 4,) * 2, "widths": ("i32",) * 2, "heads": "i32", "k": "i32", "room": "i32"}
    yield "gather", retention._gather, types, {"ROWS": retention.ROWS, "WIDTH": 128}


def main() -> None:
    """Compile them all; anything that Triton refuses ends it."""
    target = GPUTarget("cuda", int(sys.argv[1]), 32)
    for name, kernel, types, tile in kernels():
        absent = {argument: None for argument, kind in types.items() if kind is None}
        signature = {a: "constexpr" if kind is None else kind for a, kind in types.items()}
        signature |= dict.fromkeys(tile, "constexpr")
        ordered = {a: signature[a] for a in kernel.arg_names}
        source = ASTSource(kernel, signature=ordered, constexprs=absent | tile)
        try:
            binary = triton.compile(source, target=target)
        except Exception as error:
            raise RuntimeError(f"{name} does not compile: {types}, {tile}") from error
        print(name, len(binary.asm["cubin"]), binary.metadata.shared)


if __name__ == "__main__":
    main()
