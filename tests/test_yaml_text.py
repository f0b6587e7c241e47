"""Recipe files as attacks: each is refused at once, in one line that names the file, and costs next to nothing."""

from __future__ import annotations

import os
import tracemalloc

import pytest
import yaml

from tokenprune import BadInput
from tokenprune.evaluation.grid import load_benchmark
from tokenprune.methods.base import make_method, options_of
from tokenprune.methods.registry import all_methods
from tokenprune.recipes import load_recipe
from tokenprune.recipes.yaml_text import parse

TEXT = "model: x\nstages: [{at: 0, method: random%s}]\n"
PLAIN = TEXT % ""


def with_option(value: str, name: str = "keep") -> bytes:
    return (TEXT % f", {name}: {value}").encode()


HOSTILE = {
    "UTF-16": (PLAIN.encode("utf-16"), "not UTF-8 .*Save it as UTF-8"),
    "UTF-16 without its mark": (PLAIN.encode("utf-16-le"), "null bytes, as UTF-16 does"),
    "UTF-32": (PLAIN.encode("utf-32"), "not UTF-8"),
    "Latin-1": ("model: é\n".encode("latin-1"), r"not UTF-8 \(byte 0xe9 at 7\)"),
    "a picture": (b"\x89PNG\r\n\x1a\n", "not UTF-8"),
    "null bytes": (b"\0" * 100, "null bytes"),
    "a null byte in a text": (PLAIN.replace("x", "x\0").encode(), "null bytes"),
    "a bell": (PLAIN.replace("x", "x\a").encode(), "no valid YAML"),
    "20 MB of text": (PLAIN.encode() + b"# x\n" * 5_000_000, "larger than 64 KiB"),
    "20 MB in one word": (b"x" * 20_000_000, "larger than 64 KiB"),
    "empty": (b"", "it is empty"),
    "spaces": (b" \n\n", "it is empty"),
    "a comment": (b"# nothing\n", "it is empty"),
    "null": (b"null", "it is empty"),
    "a number": (b"3", "no mapping"),
    "open lists": (b"a: " + b"[" * 60_000, "more than 16 mappings and lists"),
    "closed lists": (b"[" * 30_000 + b"]" * 30_000, "more than 16 mappings and lists"),
    "open mappings": (b"{a: " * 15_000, "more than 16 mappings and lists"),
    "dashes": (b"- " * 30_000, "more than 16 mappings and lists"),
    "question marks": (b"? " * 30_000, "more than 16 mappings and lists"),
    "stairs": ("".join(f"{' ' * i}k:\n" for i in range(300)).encode(), "more than 16 mappings and lists"),
    "a wide list": (b"[" + b"a," * 30_000 + b"]", "more than 2000 names and values"),
    "wide mappings": ("".join(f"k{i}: 1\n" for i in range(6000)).encode(), "more than 2000 names and values"),
    "many stages": (("model: x\nstages:\n" + "- {at: 0, method: random}\n" * 2000).encode(), "more than 2000"),
    "5,000 digits": (with_option("1" * 5000), "a number of more than 40 characters"),
    "5,000 hexadecimal digits": (with_option("0x" + "f" * 5000, "seed"), "a number of more than 40 characters"),
    "a long sexagesimal": (with_option("1" + ":1" * 20_000, "seed"), "a number of more than 40 characters"),
    "5,000 places": (with_option("0." + "1" * 5000), "a number of more than 40 characters"),
    "30 digits": (with_option("1" * 30), "more than 64 bits"),
    "65 bits": (with_option("0x10000000000000000", "seed"), "more than 64 bits"),
    "no digits": (with_option("0b_", "seed"), "'0b_' is no number"),
    "NaN": (with_option(".nan"), "is no number"),
    "infinity": (with_option("-.inf"), "is no number"),
    "too large for a float": (with_option("1.0e+999"), "is no number"),
    "a date": (with_option("2020-13-45"), "keep='2020-13-45' is not a number"),
    "a name twice": (b"model: y\n" + PLAIN.encode(), "line 2, column 1: 'model' is there twice"),
    "an option twice": (with_option("0.1, keep: 0.2"), "'keep' is there twice"),
    "a name twice, written otherwise": (b'"model": y\n' + PLAIN.encode(), "'model' is there twice"),
    "an anchor": (with_option("&a 0.1"), "anchors"),
    "an alias": (b"a: &a [x]\nb: *a", "anchors"),
    "an alias of nothing": (with_option("*a"), "anchors"),
    "a list in itself": (b"&a [*a]", "anchors"),
    "a bomb": (b"a: &a [x,x]\nb: &b [*a,*a]\nc: &c [*b,*b]\n", "anchors"),
    "merged mappings": (b"<<: {positions: compact}\n" + PLAIN.encode(), "wrong at <<: Extra inputs"),
    "an object": (b"!!python/object/apply:os.system [ls]", "tags"),
    "a tag on a number": (with_option("!!float x"), "tags"),
    "an own tag": (with_option("!mine 1"), "tags"),
    "two documents": (b"---\n" + PLAIN.encode() + b"---\n" + PLAIN.encode(), "another document"),
    "a number for a name": (b"1: x\n" + PLAIN.encode(), "'1' is no text"),
    "nothing for a name": (b"? \n: x\n" + PLAIN.encode(), "'None' is no text"),
    "yes for a name": (b"yes: x\n" + PLAIN.encode(), "'True' is no text"),
    "a mapping for a name": (b"{a: 1}: x\n", "is no text"),
    "a list for a name": (b"[a]: x\n", "is no text"),
    "half a character": (PLAIN.replace("x", '"\\ud800"').encode(), "half a character"),
    "a name that clears the screen": (b'"\\e[2J": 1\n' + PLAIN.encode(), r"wrong at '\\x1b\[2J'"),
    "a long name": (b"? " + b"k" * 60_000 + b"\n: 1\n" + PLAIN.encode(), "wrong at kkk"),
    "a long method": (b"model: x\nstages: [{at: 0, method: " + b"m" * 60_000 + b"}]", "Unknown method 'mmm"),
    "a long option": (with_option("1}]\n") + b"# " + b"x" * 60_000, "expected"),
    "a layer that is true": (PLAIN.replace("at: 0", "at: yes").encode(), "valid integer"),
    "a layer that is a text": (PLAIN.replace("at: 0", "at: '0'").encode(), "valid integer"),
    "a layer that is 2.0": (PLAIN.replace("at: 0", "at: 2.0").encode(), "valid integer"),
    "a stage that is a number": (b"model: x\nstages: [1]", "wrong at stages.0"),
    "stages that are a text": (b"model: x\nstages: abc", "wrong at stages"),
    "a method that is a list": (b"model: x\nstages: [{at: 0, method: [random]}]", "wrong at stages.0.method"),
    "an option called self": (with_option("1", "self"), "Unknown option of random 'self'"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files(tmp_path, case):
    """Refused in a short line that a terminal can show."""
    content, message = HOSTILE[case]
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=message) as error:
        load_recipe(path)
    said = str(error.value)
    assert "mine.yaml" in said
    assert said.isprintable()
    assert len(said) < 1200


@pytest.mark.parametrize("case", ["UTF-16", "20 MB of text", "a name twice", "a bomb", "5,000 digits"])
def test_hostile_benchmarks(tmp_path, case):
    path = tmp_path / "mine.yaml"
    path.write_bytes(HOSTILE[case][0])
    with pytest.raises(BadInput, match=HOSTILE[case][1]):
        load_benchmark(path)


@pytest.mark.parametrize("case", ["20 MB of text", "20 MB in one word", "a wide list", "a long method", "a bomb"])
def test_memory(tmp_path, case):
    path = tmp_path / "mine.yaml"
    path.write_bytes(HOSTILE[case][0])
    all_methods()
    tracemalloc.start()
    with pytest.raises(BadInput):
        load_recipe(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 2**20


PLACES = {
    "a folder": (lambda path: path.mkdir(), "it is a folder"),
    "a pipe": (os.mkfifo, "it is a pipe"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "it is a pipe, a socket or a device"),
    "a link to itself": (lambda path: path.symlink_to(path), "There is no recipe file"),
    "nothing": (lambda path: None, "There is no recipe file"),
}


@pytest.mark.parametrize("case", PLACES)
def test_what_is_no_file(tmp_path, case):
    make, message = PLACES[case]
    make(tmp_path / "mine.yaml")
    with pytest.raises(BadInput, match=message) as error:
        load_recipe(tmp_path / "mine.yaml")
    assert "mine.yaml" in str(error.value)


@pytest.mark.parametrize("name", ["a\0.yaml", ".yaml", "x" * 5000 + ".yaml", "/", ".", "", "../configs/fastv_k2_r50"])
def test_names_that_no_recipe_has(name):
    with pytest.raises(BadInput, match="recipe"):
        load_recipe(name)


def test_what_a_recipe_may_look_like(tmp_path):
    """As Windows and editors write it; the same as plain."""
    path, found = tmp_path / "mine.yaml", []
    for content in (PLAIN, "\ufeff" + PLAIN, PLAIN.replace("\n", "\r\n"), f"---\n# é\n{PLAIN}...\n"):
        path.write_bytes(content.encode())
        found.append(load_recipe(path))
    assert all(one == found[0] for one in found)


def test_values_are_those_of_plain_yaml():
    text = "a: [1, -2, 0x1f, 0.5, 1.0e-3, true, no, null, ~, 'x', \"\\u00e9\", 9223372036854775807]\nb: {c: d}\n"
    assert parse(text) == yaml.safe_load(text)


ODD = [None, True, "x", -1, 1e308, 2**63 - 1, (None,), ("x",), (True,), ([1],), {"a": 1}]


def test_every_option_takes_or_refuses_every_value():
    """What an option is not made for raises `BadInput` at once; a list has values of one kind."""
    for name, cls in all_methods().items():
        for field in options_of(cls):
            for odd in ODD:
                try:
                    make_method(cls, {field.name: odd})
                except BadInput:
                    continue
                assert not isinstance(odd, (dict, tuple)), (name, field.name, odd)
