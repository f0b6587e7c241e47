"""What starting costs: importing the package, and `prune()` on a model of 32 layers."""

from __future__ import annotations

import subprocess
import sys
import time

from rich.console import Console
from transformers import LlavaForConditionalGeneration

from eval.bench.bars import Bar
from tokenprune import prune
from tokenprune.bench.compare import Spread
from tokenprune.bench.shapes import configure_llama, configure_llava

IMPORT = "import time, torch, transformers; a = time.perf_counter(); import tokenprune; print(time.perf_counter() - a)"
FIRST = (
    "import time, torch, transformers; transformers.LlavaForConditionalGeneration; a = time.perf_counter(); "
    "import tokenprune; tokenprune.prune; print(time.perf_counter() - a)"
)


def bars(console: Console, rounds: int = 7) -> list[Bar]:
    """Import by itself (limit 0.3 s); with the first use of `prune`, once a model class is loaded (no limit was set:
    the same is asked); and `prune()` (50 ms)."""
    found = []
    for name, code in (("import tokenprune, s", IMPORT), ("the same with the first use of prune, s", FIRST)):
        times = [float(_python(code)) for _ in range(rounds)]
        found.append(_bar(name, "after torch and transformers", times, 0.3))
    model = _model()
    for method in ("divprune", "fastv", "sparsevlm"):
        times = []
        for _ in range(rounds):
            began = time.perf_counter()
            run = prune(model, method, keep=0.1)
            times.append(1000 * (time.perf_counter() - began))
            run.remove()
        found.append(_bar("prune(), ms", f"32 layers, {method}", times, 50.0))
    for bar in found:
        console.print(f"{bar.name} ({bar.where}): {bar.value:.3f}")
    return found


def _bar(name: str, where: str, times: list[float], limit: float) -> Bar:
    spread = Spread.of(times)
    return Bar(name, where, spread.median, spread.low, spread.high, limit, True)


def _python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def _model() -> LlavaForConditionalGeneration:
    """Narrow, but as deep as LLaVA-1.5-7B."""
    tower = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=24, num_attention_heads=4)
    return LlavaForConditionalGeneration(configure_llava(configure_llama(64, 128, 32, 4), tower)(336))
