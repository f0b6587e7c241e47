"""A grid whose process is killed goes on where it stopped, and comes to what one that was left alone comes to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.draw import cases
from tests.killed import MOMENTS
from tokenprune.evaluation.cells import read_all

ROOT = Path(__file__).parent.parent
ASKED = ["eval", "--model", "scenes", "--tasks", "scenes", "--methods", "uniform", "--keep", "0.25", "--limit", "3"]


@pytest.fixture
def where(packed_tasks):
    return ["--include-path", packed_tasks, "--device", "cpu", "--batch", "2", "--out"]


def outcome(folder):
    """What counts of every cell: its scores, and each document's answer with what was kept."""
    found = {}
    for one in read_all(folder):
        lines = (folder / "samples" / f"{one.cell.name}.jsonl").read_text().splitlines()
        said = sorted((s["doc_id"], s["answer"], s["kept_tokens"]) for s in map(json.loads, lines))
        found[one.cell.name] = one.scores, one.questions, one.cost.measured, said
    return found


def started(tmp_path, program, moment, rank, arguments):
    """What became of a process that kills itself."""
    own = {"MASTER_PORT": str(28500 + os.getpid() % 1000), "OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "home")}
    command = [*program, "tests.killed", moment, rank, *ASKED, *arguments]
    return subprocess.run(command, cwd=ROOT, env=os.environ | own, capture_output=True, text=True, timeout=600)


def resumed(command, tmp_path, where):
    """Go on with what `tmp_path`/out holds; the first cell, which was through, is left alone."""
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.json")}
    (first,) = before
    code, out, err = command(*ASKED, *where, tmp_path / "out")
    assert code == 0, err
    assert [line for line in out.splitlines() if "/2 " in line] == ["2/2 scenes: uniform 0.25"]
    assert first.stat().st_mtime_ns == before[first]
    code, _, err = command(*ASKED, *where, tmp_path / "alone")
    assert code == 0, err
    assert len(outcome(tmp_path / "alone")) == 2
    return outcome(tmp_path / "out"), outcome(tmp_path / "alone")


@cases("moment", list(MOMENTS), lambda moment: "one rank")
def test_a_killed_grid_goes_on(command, where, tmp_path, moment):
    done = started(tmp_path, [sys.executable, "-m"], moment, "0", [*where, tmp_path / "out"])
    assert done.returncode == -9, done.stderr[-2000:]
    again, alone = resumed(command, tmp_path, where)
    assert again == alone


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("moment", "rank"), [("between cells", "1"), ("within a cell", "1"), ("before its result", "0")]
)
def test_a_rank_is_killed(command, where, tmp_path, moment, rank):
    """The other rank does not write what it cannot know; two ranks go on, or one."""
    ranks = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m"]
    done = started(tmp_path, ranks, moment, rank, [*where, tmp_path / "out"])
    assert done.returncode != 0
    assert "SIGKILL" in done.stderr or "exitcode  : -9" in done.stderr, done.stderr[-2000:]
    assert len(list((tmp_path / "out").glob("*.json"))) == 1
    if moment == "within a cell":
        two = started(tmp_path, ranks, moment, "none", [*where, tmp_path / "out"])
        assert two.returncode == 0, two.stderr[-2000:]
        code, _, err = command(*ASKED, *where, tmp_path / "alone")
        assert code == 0, err
        assert outcome(tmp_path / "out") == outcome(tmp_path / "alone")
    else:
        again, alone = resumed(command, tmp_path, where)
        assert again == alone


@pytest.mark.nightly
def test_several_ranks_answer_like_one(command, where, tmp_path):
    ranks = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m"]
    done = started(tmp_path, ranks, "within a cell", "none", [*where, tmp_path / "two"])
    assert done.returncode == 0, done.stderr[-2000:]
    code, _, err = command(*ASKED, *where, tmp_path / "one")
    assert code == 0, err
    assert outcome(tmp_path / "one") == outcome(tmp_path / "two")
