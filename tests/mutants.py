"""Is the gate sharp? Faults put into a copy of the package, one at a time, and the test that finds each.

`python -m tests.mutants` writes `tests/mutants.md`; `python -m tests.mutants 7 8 --only recall` tries other seeds.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tempfile
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest
import torch

import tests.tiny  # noqa: F401, which imports the host library
from tokenprune.evaluation.markdown import cell

ROOT = Path(__file__).parent.parent
TABLE = ROOT / "tests" / "mutants.md"
GATE = [f"tests/test_{name}.py" for name in ("laws", "running", "versions", "laws_exact", "caches", "signals")]


@dataclass(frozen=True)
class Fault:
    """One wrong line: `old` stands once in the file and becomes `new`."""

    name: str
    file: str
    old: str
    new: str

    def put(self, folder: Path) -> None:
        path = folder / self.file
        text = path.read_text()
        if text.count(self.old) != 1:
            sys.exit(f"{self.name}: {self.file} holds its line {text.count(self.old)} times, not once: {self.old!r}")
        path.write_text(text.replace(self.old, self.new))


ENGINE = "tokenprune/engine"
FAULTS = [
    Fault(
        "positions after an image off by one",
        "tokenprune/core/positions.py",
        "moved = moved + (end - start + 1 - size)",
        "moved = moved + (end - start - size)",
    ),
    Fault("every row renumbered as row 0", f"{ENGINE}/token_state.py", "if span.row == row:", "if span.row == 0:"),
    Fault(
        "renumbered rows keep the old rotation",
        f"{ENGINE}/token_state.py",
        "renumbered=self.renumbered or renumber,",
        "renumbered=self.renumbered,",
    ),
    Fault(
        "renumbering forgotten by decoding",
        f"{ENGINE}/layer_inputs.py",
        "shift=shift,",
        "shift=None,",
    ),
    Fault(
        "padding seen by its row",
        f"{ENGINE}/layer_inputs.py",
        "valid if self._padded(layer) or width > valid.shape[1] else None,",
        "None,",
    ),
    Fault(
        "sliding window one too wide",
        f"{ENGINE}/masks.py",
        "near = slots[:, None] > slots[:, own, None] - window",
        "near = slots[:, None] >= slots[:, own, None] - window",
    ),
    Fault(
        "two-way blocks seen causally",
        f"{ENGINE}/masks.py",
        "seen = seen | same",
        "seen = seen[:]",
    ),
    Fault(
        "a window's cache one too short",
        f"{ENGINE}/cache.py",
        "self._forget(news.forget)",
        "self._forget(news.forget + 1)",
    ),
    Fault(
        "the logical length counts physical rows",
        f"{ENGINE}/cache.py",
        "self.logical += news.length",
        "self.logical += key_states.shape[-2]",
    ),
    Fault(
        "rejected drafts still count",
        f"{ENGINE}/cache.py",
        "self.logical -= removed",
        "pass",
    ),
    Fault(
        "a stage listens to the layer before its own",
        f"{ENGINE}/passes.py",
        "taps.listeners()[self.setup.text_model.layers[i].self_attn] = listener",
        "taps.listeners()[self.setup.text_model.layers[max(i - 1, 0)].self_attn] = listener",
    ),
    Fault(
        "a tapped row of another batch row",
        "tokenprune/signals/decoder.py",
        "own = torch.stack([source[u.row][:, u.rows.to(source.device)] for u in units])",
        "own = torch.stack([source[0][:, u.rows.to(source.device)] for u in units])",
    ),
    Fault(
        "the last row asks, padding or not",
        f"{ENGINE}/token_state.py",
        "return (usable * torch.arange(1, self.width + 1, device=usable.device)).argmax(-1)",
        "return torch.full((self.batch,), self.width - 1, device=usable.device)",
    ),
    Fault(
        "DeepStack planes stay where they were",
        f"{ENGINE}/forward.py",
        "order = stack.order.gather(1, self.state.column)",
        "order = stack.order[:, : hidden.shape[1]]",
    ),
    Fault(
        "DeepStack planes not mixed",
        f"{ENGINE}/forward.py",
        "plane[order[one.kept]] = mixed.to(plane.dtype)",
        "pass",
    ),
    Fault(
        "separators stay when their row goes",
        f"{ENGINE}/token_state.py",
        "return ((tokens >= first) & (tokens < last)).any(-1)",
        "return torch.ones_like(ids, dtype=torch.bool)",
    ),
    Fault(
        "merge weights in the wrong order",
        f"{ENGINE}/forward.py",
        "weights = one.weights.to(hidden.device)",
        "weights = one.weights.to(hidden.device).flip(0)",
    ),
    Fault(
        "merged from row 0",
        f"{ENGINE}/forward.py",
        "weighted_sums(weights, hidden[one.row, one.sources])",
        "weighted_sums(weights, hidden[0, one.sources])",
    ),
    Fault(
        "recalled tokens forget how far they had moved",
        f"{ENGINE}/forward.py",
        "inputs = LayerInputs(self.piece, state, then.past_shift, then.moved)",
        "inputs = LayerInputs(self.piece, state, then.past_shift, self.inputs.moved)",
    ),
    Fault(
        "a decoding stage looks at everything",
        f"{ENGINE}/decode_cache.py",
        "mask = ~self.visual | visible_tokens.chosen.to(rows.slots.device).gather(1, rows.slots.clamp(max=last))",
        "mask = torch.ones_like(self.visual)",
    ),
    Fault(
        "the encoder's signal of another image",
        f"{ENGINE}/prompt.py",
        "found.append((span, {need: signal[span.item][part] for need, signal in by_item.items()}))",
        "found.append((span, {need: signal[0][part] for need, signal in by_item.items()}))",
    ),
    Fault(
        "taps stay after removal",
        f"{ENGINE}/run.py",
        "            self._untap()\n",
        "            pass\n",
    ),
]


def run_gate(folder: str, log: Path, seed: int) -> NoReturn:
    """Run the tests on the package in `folder` and end this process: whatever happens, into the log."""
    code = 4
    try:
        with log.open("w") as out:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
        os.environ |= {"TP_SEED": str(seed), "TP_ALL": "0"}
        for name in [name for name in sys.modules if name.partition(".")[0] == "tokenprune"]:
            del sys.modules[name]  # what wrote the table
        sys.path.insert(0, folder)
        import tokenprune

        assert Path(tokenprune.__file__).is_relative_to(folder)
        code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *GATE])
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def caught_by(fault: Fault, seed: int) -> tuple[str | None, float]:
    """The first test that a fault makes fail, None where all pass; and CPU seconds."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "tokenprune", Path(folder) / "tokenprune")
        fault.put(Path(folder))
        log = Path(folder) / "log"
        child = os.fork()  # the host library is imported once, the package in each child
        if not child:
            run_gate(folder, log, seed)
        _, status, used = os.wait4(child, 0)
        said = log.read_text()
    if os.waitstatus_to_exitcode(status) not in (0, 1):
        sys.exit(f"{fault.name}: pytest ended with {os.waitstatus_to_exitcode(status)}\n{said[-3000:]}")
    found = re.search(r"^FAILED tests/(\S+)", said, re.MULTILINE)
    return found and found[1], used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seeds", nargs="*", type=int, default=[1, 2])
    parser.add_argument("--only", default="", help="faults with this in their name; other rows of the table stay")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    os.chdir(ROOT)
    rows = (
        dict(re.findall(r"^(\| [^|]+ \| [^|]+ \| \d+) (\| .*)$", TABLE.read_text(), re.MULTILINE)) if asked.only else {}
    )
    missed = []
    for fault in (fault for fault in FAULTS if asked.only in fault.name):
        for seed in asked.seeds:
            test, spent = caught_by(fault, seed)
            case = f"| {cell(fault.name)} | `{fault.file}` | {seed}"
            rows[case] = f"| {f'`{cell(test)}`' if test else '**nothing**'} | {spent:.0f} |"
            missed += [] if test else [(fault.name, seed)]
            print(case, rows[case], flush=True)
    TABLE.write_text(ABOUT + "".join(f"{case} {found}\n" for case, found in rows.items()))
    sys.exit(f"not caught: {missed}" if missed else None)


ABOUT = """# Faults and what finds them

`python -m tests.mutants` puts each of these faults into a copy of the package and runs the law tests of the gate on it
until the first failure, with two seeds; CPU seconds without the host library's import.

| fault | file | seed | caught by | CPU s |
| :--- | :--- | ---: | :--- | ---: |
"""

if __name__ == "__main__":
    main()
