"""The command line as a user runs it, on the bundled model."""

from __future__ import annotations

import json
import re
import shutil
from itertools import product
from pathlib import Path

import pytest
import skimage
from PIL import Image

from tests.draw import cases
from tests.tiny import FAMILIES
from tests.tiny.saved import PROCESSORS, save
from tokenprune import scenes
from tokenprune.families.registry import all_families
from tokenprune.methods.registry import all_methods
from tokenprune.recipes import recipe_names

pytestmark = pytest.mark.cli
RESULTS = Path(__file__).parent.parent / "eval" / "results"


@cases(
    "method, positions",
    list(product(["random", "uniform", "fastv", "fopru", "divprune"], ["original", "compact"])),
    lambda _, positions: positions,
)
def test_json(command, method, positions):
    code, out, _ = command(
        "run", "--method", method, "--keep", "0.25", "--positions", positions, "--json", "--repeat", 1
    )
    assert code == 0
    result = json.loads(out)
    assert result["dense"]
    assert result["report"]["final_tokens"] == 36
    assert result["report"]["positions"] == positions


def test_brackets_in_a_question_are_shown(command):
    code, out, _ = command("run", "--image", PICTURE, "--prompt", "what is [red] ?", "--repeat", 1)
    assert code == 0
    assert "what is [red] ?" in out


def test_options_of_the_method(command):
    row = ("run", "--method=fopru", "--keep", "24", "--strategy", "row", "--source=cls", "--json", "--repeat", 1)
    code, out, _ = command(*row)
    assert code == 0
    assert json.loads(out)["report"]["stages"][0]["after"] == [24]


def test_list_names_everything(command):
    """Into a pipe: a line for each method, columns apart by two spaces, none of them empty."""
    code, out, _ = command("list")
    rows = [re.split(r"  +", line) for line in out.splitlines()]
    assert code == 0
    assert rows[0] == ["name", "year", "kind", "layers", "reads", "best for"]
    assert [row[0] for row in rows[1:]] == list(all_methods())
    assert {len(row) for row in rows} == {6}
    reads = "features text attention"
    assert ["sparsevlm", "2025", "text-guided merging", "3 7 16", reads, "pictures, one question"] in rows
    assert ["evs", "2025", "video", "0", "features", "videos, any question"] in rows
    assert ["uniform", "-", "baseline", "0", "-", "comparison"] in rows


@pytest.mark.parametrize("columns", [40, 80, 120])
@pytest.mark.parametrize("more", [(), ("--recipes",), ("fastv",), ("fastervlm",), ("GAP",)])
def test_list_fits_the_terminal(command, monkeypatch, columns, more):
    """A method or a recipe stays on its line; at 80 and 120 columns nothing of the methods' table is cut."""
    monkeypatch.setenv("COLUMNS", str(columns))
    code, out, _ = command("list", *more)
    assert code == 0
    assert max(map(len, out.splitlines())) <= columns
    if more in ((), ("--recipes",)):
        assert len(out.splitlines()) == 1 + len(recipe_names() if more else all_methods())
    assert columns == 40 or more == ("--recipes",) or "…" not in out


FOUND = {
    "name": ("fastv", ["fastv"]),
    "class": ("FastV", ["fastv"]),
    "spelling": ("sparse-vlm", ["sparsevlm"]),
    "paper": ("LLaVA-PruMerge", ["prumerge"]),
    "plus": ("PruMerge+", ["prumerge"]),
    "words": ("Token Transforming", ["token_transforming"]),
    "inside": ("lrs-vqa", ["coarse_to_fine"]),
    "number": ("2403.06764", ["fastv"]),
    "arXiv": ("arXiv 2403.06764", ["fastv"]),
    "address": ("https://arxiv.org/abs/2411.15024v2", ["dycoke", "dycoke_kv"]),
    "version": ("2412.01818v1", ["fastervlm"]),
    "versions": ("2412.01818", ["fastervlm", "vispruner"]),
    "recipe": ("sparsevlm_192", ["sparsevlm_192"]),
    "policy": ("GAP", ["GAP"]),
    "policy's number": ("arxiv:2506.21873", ["GAP"]),
    "policy's value": ("compact", ["compact"]),
}


@pytest.mark.parametrize("case", FOUND)
def test_list_finds_what_papers_call_it(command, case):
    asked, names = FOUND[case]
    code, out, err = command("list", asked)
    assert code == 0, err
    assert [part.split()[0] for part in out.split("\n\n")] == names


def test_list_of_one_method(command):
    """Its options, families, recipes, and the figures of the committed results."""
    code, out, _ = command("list", "visionzip")
    assert code == 0
    cells = json.loads((RESULTS / "scenes_methods.json").read_text())["cells"]
    right = next(c["all"] for c in cells if (c["method"], c["keep"], c["positions"]) == ("visionzip", 0.25, "original"))
    size = json.loads((RESULTS / "selection_cost.json").read_text())["sizes"][1]
    share = 100 * size["selection_ms"]["visionzip"] / size["prefill_ms"]
    for text in (
        "arXiv 2412.04467",
        "--merge-in projected  what is mixed",
        "one of projected, encoder",
        f"6 of {len(all_families())}: InternVL, LLaVA-1.5",
        "visionzip source=received",
        "visionzip_64: llava-1.5-7b; average_percent 94.0",
        f"{100 * right:.1f} % at keep 0.25",
        f"/ {share:.1f} /",
    ):
        assert text in out
    assert "positions" in command("list", "GAP")[1]
    assert "not measured here" in command("list", "streamvln")[1]


@pytest.mark.parametrize("asked", ["fastvv", "divprun", "sparsevlm_193", "pyramid drop 2", "visionzp"])
def test_list_of_an_unknown_name_shows_the_nearest(command, asked):
    code, _, err = command("list", asked)
    nearest = {"fastvv": "fastv,", "sparsevlm_193": "sparsevlm_192", "visionzp": "visionzip"}
    wanted = nearest.get(asked, "divprune" if asked == "divprun" else "pyramiddrop")
    assert code == 2
    assert err.startswith(f"error: Unknown method, recipe or paper {asked!r}. Nearest: {wanted}")


def test_list_of_a_paper_that_is_not_here(command):
    assert command("list", "2999.12345")[2] == (
        "error: No method here is of arXiv 2999.12345. `tokenprune list` shows all.\n"
    )


def test_list_recipes(command):
    code, out, _ = command("list", "--recipes")
    assert code == 0
    for text in ("sparsevlm_192", "before layer 16", "average_percent 98.1", "llava-next-7b"):
        assert text in out


def test_a_recipe_runs(command, tmp_path):
    """A name, and a file of one's own with several stages; its position policy holds unless given."""
    mine = tmp_path / "mine.yaml"
    mine.write_text(
        "model: scenes\npositions: compact\nstages: [{at: 4, method: fastv, keep: 9}, {at: 0, method: tome, keep: 30}]"
    )
    for method, positions, tokens in (("fastv_k2_r50", "original", 72), (mine, "compact", 9)):
        code, out, _ = command("run", "--repeat", 1, "--json", "--method", method)
        assert code == 0
        report = json.loads(out)["report"]
        assert (report["positions"], report["final_tokens"]) == (positions, tokens)
    code, out, _ = command("run", "--repeat", 1, "--json", "--method", mine, "--positions", "original")
    assert json.loads(out)["report"]["positions"] == "original"


PICTURE, VIDEO = str(scenes.IMAGE), str(scenes.VIDEO)
REFUSED = {
    "method": (("--method", "divprun"), "Unknown method or recipe 'divprun'. Did you mean 'divprune'?"),
    "option": (("--kep", "0.1"), "Unknown option of divprune 'kep'. Did you mean 'keep'?"),
    "no value": (("--strategy",), "--strategy needs a value: --strategy VALUE."),
    "stray": (("picture.png",), "Unexpected argument 'picture.png'. Options of a method are written --name value."),
    "keep -1": (("--keep", "-1"), "keep=-1 is below 0. An int is a number of tokens; 0 drops them all."),
    "keep nan": (
        ("--keep", "nan"),
        "keep=nan is not a number. Give a fraction such as 0.1 or a token count such as 58.",
    ),
    "keep 1.5": (
        ("--keep", "1.5"),
        "keep=1.5 is above 1. A float is a fraction of the tokens, at most 1.0; for a token count give an int.",
    ),
    "keep 145": (
        ("--keep", "145"),
        "keep=145 is more than the 144 visual tokens there are. Lower it, or give a fraction.",
    ),
    "at": (("--at", "8"), "at=8 is past the last layer: this model has layers 0 to 7."),
    "early": (
        ("--method", "fastv", "--at", "0"),
        "at=0 is too early for fastv, which reads attention of the layer before it. Give at=1 or later.",
    ),
    "positions": (("--positions", "compakt"), "Unknown positions 'compakt'. Did you mean 'compact'?"),
    "at what": (("--at", "later"), "at='later' is not a layer. Give a whole number; 0 is before the LLM."),
    "video": (("--video", "clip.mp4", "--prompt", "what ?"), "There is no video at clip.mp4."),
    "video prompt": (("--video", VIDEO), "--video needs --prompt TEXT: what do you want to know about it?"),
    "video and image": (
        ("--video", VIDEO, "--image", PICTURE),
        "--video goes without --image, and without --save: an overlay is drawn for pictures.",
    ),
    "frames": (("--frames", "3"), "--frames and --fps go with --video FILE."),
    "frames 0": (
        ("--video", VIDEO, "--prompt", "what ?", "--frames", "0"),
        "frames=0 must be a whole number from 1 on.",
    ),
    "both": (
        ("--video", VIDEO, "--prompt", "what ?", "--frames", "4", "--fps", "1"),
        "Give frames= or fps=, not both.",
    ),
    "no videos": (
        ("--video", VIDEO, "--prompt", "what ?", "--model", str(scenes.MODEL)),
        "A LLaVA-1.5 model takes no videos. Give it an image, or another model.",
    ),
    "decode": (
        ("--method", "dycoke_kv", "--at", "3"),
        "at=3 does not fit dycoke_kv, which works at every decoding step. Give it at='decode'.",
    ),
    "image": (("--image", "no.png", "--prompt", "what ?"), "There is no image at no.png."),
    "prompt": (("--image", PICTURE), "--image needs --prompt TEXT: what do you want to know about it?"),
    "brackets": (("--method", "[red]x"), f"Unknown method or recipe '[red]x'. Known: {', '.join(all_methods())}."),
    "empty prompt": (("--image", PICTURE, "--prompt", " "), "The prompt is empty. Ask something about what is shown."),
    "model": (("--model", "./nowhere"), "There is no model folder at ./nowhere."),
    "save": (("--save", "overlay.xyz"), "Cannot write the overlay to overlay.xyz: unknown file extension: .xyz"),
}


def test_a_video(command):
    """The bundled clip, sampled by number and by rate, by a method of two stages and by one of decoding steps."""
    shown = ("--video", VIDEO, "--prompt", scenes.VIDEO_QUESTION, "--repeat", 1, "--json")
    code, out, err = command("run", *shown, "--method", "flashvid", "--keep", "0.5")
    assert code == 0, err
    found = json.loads(out)
    assert found["dense"] == "purple ring"
    assert (found["report"]["tokens"], len(found["report"]["stages"])) == (256, 2)
    code, out, err = command("run", *shown, "--fps", 4, "--method", "dycoke_kv", "--keep", 10)
    assert code == 0, err
    report = json.loads(out)["report"]
    assert report["tokens"] == 128
    assert report["decoding"]["looked_at"] == 10


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_are_one_line(command, case):
    arguments, message = REFUSED[case]
    code, _, err = command("run", "--repeat", 1, *arguments)
    assert (code, err.strip()) == (2, f"error: {message}")


def test_a_folder_without_a_model(command, tmp_path):
    code, _, err = command("run", "--model", tmp_path)
    assert code == 2
    assert err.startswith(f"error: Cannot load a vision-language model from '{tmp_path}': ")
    assert "Traceback" not in err


def test_a_model_without_a_chat_template(command, tmp_path):
    shutil.copytree(scenes.MODEL, tmp_path, dirs_exist_ok=True)
    (tmp_path / "chat_template.jinja").unlink()
    code, _, err = command("run", "--model", tmp_path)
    assert code == 2
    wanted = f"error: The processor of '{tmp_path}' has no chat template, so its prompt format is not known."
    assert err.strip() == wanted


def test_another_model(command, tmp_path):
    """A random LLaVA with the bundled processor: `--model DIR` serves models that are not ours."""
    from transformers import AutoProcessor

    model = FAMILIES["llava"].build()
    model.config.image_token_id = model.config.image_token_index = 4
    model.save_pretrained(tmp_path)
    processor = AutoProcessor.from_pretrained(scenes.MODEL)
    processor.image_processor.size = {"shortest_edge": 24}
    processor.image_processor.crop_size = {"height": 24, "width": 24}
    processor.patch_size = 4
    processor.save_pretrained(tmp_path)
    code, out, err = command(
        "run", "--model", tmp_path, "--image", PICTURE, "--prompt", "what is it ?", "--keep", 9, "--json", "--repeat", 1
    )
    assert code == 0, err
    assert json.loads(out)["report"]["tokens"] == 36


@cases("name, method", list(product(PROCESSORS, ["divprune", "fastv", "fopru"])), lambda name, _: name)
def test_real_processors_on_a_photograph(command, tmp_path, name, method):
    """Random weights: what counts is that all tokens of the real layout are found, and the right share of them kept."""
    save(name, tmp_path / "model")
    photo = Path(skimage.__file__).parent / "data" / "astronaut.png"
    asked = ("--model", tmp_path / "model", "--image", photo, "--prompt", "what is in the picture ?")
    overlay = tmp_path / "not" / "there" / "overlay.png"
    settings = ("--method", method, "--keep", "0.25", "--repeat", 1, "--max-new-tokens", 3, "--save", overlay)
    code, out, err = command("run", *asked, *settings, "--json")
    assert code == 0, err
    report = json.loads(out)["report"]
    tokens = {"llava_next": [36, 144], "idefics3": [9] * 5, "gemma3": [9]}.get(name, [36])
    assert report["tokens"] == sum(tokens)
    assert report["final_tokens"] == sum(round(0.25 * n) for n in tokens)
    assert min(Image.open(overlay).size) >= 480
