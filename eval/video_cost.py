"""What the video methods cost: choosing before the LLM, and a decoding step against the length of the context.

`python -m eval.video_cost`. Everything is interleaved in one process; medians with the smallest and largest round.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from transformers import DynamicCache, LlavaForConditionalGeneration

from eval.results import RESULTS, write
from eval.selection_cost import TEXT, llama, signals, time_call
from tokenprune import DyCokeKV, Stage, prune
from tokenprune.bench.shapes import VISUAL, configure_llama, configure_llava
from tokenprune.engine.cache import cache_name
from tokenprune.methods.base import View
from tokenprune.methods.registry import all_methods

GRID = (32, 14, 14)
KEEP = 0.1
SIZE, TOKENS = 84, 36  # pixels along a side of one small picture, and its visual tokens
CONTEXTS = (1024, 4096, 16384)
LOOKED = 0.1  # of the visual tokens, at a step


def spread(times: list[float]) -> dict[str, float]:
    """Median and range of rounds, the first left out."""
    return {"median": median(times[1:]), "min": min(times[1:]), "max": max(times[1:])}


@torch.inference_mode()
def choosing(rounds: int, console: Console) -> dict[str, Any]:
    """Milliseconds in selection at 6,272 tokens of 32 frames, and of the prefill of what is kept."""
    n = GRID[0] * GRID[1] * GRID[2]
    found = [c for c in all_methods().values() if "video" in c.kind and not c.decodes and c.name != "streamvln"]
    chosen = {cls.name: cls(keep=KEEP) for cls in found}
    model, embeds = llama(), torch.randn(1, round(n * KEEP) + TEXT, 1024)
    names = {need.signal for method in chosen.values() for need in method.needs}
    known = signals(n, names)
    views = {
        name: View(n, 1, (GRID,), {need.signal: known[need.signal] for need in method.needs}, total=n)
        for name, method in chosen.items()
    }
    times: dict[str, list[float]] = {name: [] for name in ["prefill", *chosen]}
    for turn in range(rounds + 1):
        times["prefill"].append(time_call(lambda: model(inputs_embeds=embeds)))
        for name, method in chosen.items():
            times[name].append(time_call(lambda m=method, v=views[name]: m.select(v)))
        console.print(f"choosing: round {turn} of {rounds}")
    return {name: spread(values) for name, values in times.items()}


def model_of() -> LlavaForConditionalGeneration:
    """A random LLaVA: a tiny encoder, a decoder of 8 layers, width 512, grouped keys."""
    torch.manual_seed(0)
    tower = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    text = configure_llama(512, 1376, 8, 8, num_key_value_heads=4, max_position_embeddings=32768)
    return LlavaForConditionalGeneration(configure_llava(text, tower)(SIZE)).eval()


@torch.inference_mode()
def decoding(visual: int, rounds: int) -> dict[str, Any]:
    """Milliseconds of one decoding step behind so many visual tokens: dense, choosing anew, and with a choice that
    stands."""
    images = visual // TOKENS
    ids = torch.tensor([[1, *[VISUAL] * (images * TOKENS), 5, 6, 7]])
    pixels = torch.randn(images, 3, SIZE, SIZE)
    modes: dict[str, list[Stage]] = {
        "dense": [],
        "anew": [Stage("decode", DyCokeKV(keep=LOOKED, alike=2.0), start=2)],
        "stands": [Stage("decode", DyCokeKV(keep=LOOKED, alike=-1.0), start=2)],
    }
    models = {name: model_of() for name in modes}  # the same weights: a run is told of the steps after its own prompt
    runs = {name: prune(models[name], stages) for name, stages in modes.items() if stages}
    caches = {name: DynamicCache(config=model.config) for name, model in models.items()}
    times: dict[str, list[float]] = {name: [] for name in modes}

    def step(name: str, **inputs: Any) -> float:
        model = models[name]
        return time_call(lambda: model(**inputs, **{cache_name(model): caches[name]}))

    for name in modes:
        step(name, input_ids=ids, pixel_values=pixels, logits_to_keep=1)
    for _ in range(rounds + 1):
        for name in modes:
            times[name].append(step(name, input_ids=torch.tensor([[9]])))
    held = sum(x.nbytes for layer in caches["dense"].layers for x in (layer.keys, layer.values))
    return {
        "visual_tokens": images * TOKENS,
        "step_ms": {name: spread(values) for name, values in times.items()},
        "read_bytes": {"dense": held} | {name: run.steps[-1].read_bytes for name, run in runs.items()},
    }


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Timed rounds, after one to warm up.")] = 9,
    out: Annotated[Path, typer.Option(help="Result file.")] = RESULTS / "video_cost.json",
) -> None:
    """Measure and write the result."""
    console = Console()
    result: dict[str, Any] = {"keep": KEEP, "looked_at": LOOKED, "threads": torch.get_num_threads(), "decoding": []}
    for visual in CONTEXTS:
        result["decoding"].append(decoding(visual, rounds))
        console.print(result["decoding"][-1]["step_ms"])
    result["choosing_ms"] = choosing(min(rounds, 3), console)
    write(out, result)


if __name__ == "__main__":
    typer.run(main)
