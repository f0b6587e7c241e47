"""Methods that act inside the vision encoder: against the encoder on all rows, changed by plain rules."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.encoder_oracle import hidden_rows, rows_of_columns, towers_of
from tests.oracle import oracle_logits
from tests.tiny import FAMILIES, Picture
from tokenprune import BadInput, Stage, Unsupported, prune, select
from tokenprune.engine.encoder_taps import Proportional
from tokenprune.families.base import attention_of
from tokenprune.methods.downsample import Downsample
from tokenprune.methods.fastv import FastV
from tokenprune.methods.illava import ILLaVA
from tokenprune.methods.ipcv import IPCV
from tokenprune.methods.mustdrop import MustDrop
from tokenprune.methods.pixelprune import PixelPrune
from tokenprune.methods.place import Pixels, Vision
from tokenprune.methods.random import Random
from tokenprune.methods.token_transforming import TokenTransforming
from tokenprune.methods.tome import ToMe
from tokenprune.methods.uniform import Uniform

WHOLE = ("vipllava", "fast_vlm", "perception_lm", "got_ocr2")
# Where rows of the encoder and columns of the prompt are told apart by trial, and groups are those of one picture.
PLAIN = ["llava", "llava-siglip", "pixtral", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v", "internvl", "gemma3"]
PLAIN += ["ovis2", "paddleocr_vl", "exaone4_5", "video_llama_3", "ernie4_5_vl_moe", "hunyuan_vl"]
NO_ROTATION = ["llava", "llava-siglip", "internvl", "gemma3"]
ALL = [name for name in FAMILIES if name not in WHOLE]


def prompt(name):
    return FAMILIES[name].inputs([[2, Picture(4, 6), 3], [1, Picture(4, 4), 5]])


def groups_of(name, model, inputs):
    """For each picture or tile int64 [groups, rows of each] of the encoder, found by trial, and (sequences, rows of
    each)."""
    rows, shape = rows_of_columns(model, FAMILIES[name].text_model(model), inputs)
    pictures = []
    for row in range(len(inputs["input_ids"])):
        columns = rows[:, row].any(0).nonzero().flatten()
        groups = torch.stack([rows[:, row, c].nonzero().flatten() for c in columns])
        tile = groups[:, 0] // shape[1]
        pictures += [groups[tile == number] for number in tile.unique()]
    return pictures, shape


@contextmanager
def after_blocks(model, change):
    """While this is open, the output of each block i is `change(i, x)`, x [rows, d] of all sequences."""
    with ExitStack() as stack:
        for blocks in towers_of(model):
            for i, block in enumerate(blocks):

                def hook(module, args, output, i=i):
                    hidden = output[0] if isinstance(output, tuple) else output
                    new = change(i, hidden.reshape(-1, hidden.shape[-1]).clone()).view_as(hidden)
                    return (new, *output[1:]) if isinstance(output, tuple) else new

                stack.callback(block.register_forward_hook(hook, prepend=True).remove)
        yield


@contextmanager
def before_block(model, number, change):
    """While this is open, the input of a block is `change(x)`, x [rows, d] of all sequences."""
    with ExitStack() as stack:
        for blocks in towers_of(model):

            def hook(module, args, kwargs):
                hidden = args[0] if args else kwargs["hidden_states"]
                new = change(hidden.reshape(-1, hidden.shape[-1]).clone()).view_as(hidden)
                return ((new, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": new})

            stack.callback(blocks[number].register_forward_pre_hook(hook, with_kwargs=True).remove)
        yield


@pytest.mark.parametrize("whole", [0, 1, 5])
@pytest.mark.parametrize("name", PLAIN)
def test_ipcv_rebuilds_what_went(name, whole):
    """The encoder on all rows, where those that went are after each block what their neighbours make of them."""
    model, inputs = FAMILIES[name].build("eager"), prompt(name)
    pictures, shape = groups_of(name, model, inputs)
    gone = torch.zeros(shape[0] * shape[1], dtype=torch.bool)
    states, rebuilt = {}, {}

    def note(x):
        states[-1] = x
        return x

    def choose(x):
        """At the stage, before block 1."""
        for groups in pictures:
            change = (x[groups] - states[-1][groups]).norm(dim=-1).mean(1)
            k = int(0.5 * len(groups))
            kept = sorted(sorted(range(len(groups)), key=lambda g: -float(change[g]))[:k])
            for g in set(range(len(groups))) - set(kept):
                gone[groups[g]] = True
                far = [(float((x[groups[g]] - x[groups[other]]).norm()), other) for other in kept]
                near = [other for _, other in sorted(far)[:3]]
                for place, row in enumerate(groups[g].tolist()):
                    rebuilt[row] = [int(groups[other][place]) for other in near]

    def change(i, x):
        if i == 0:
            states[0] = x.clone()
            choose(x)
            return x
        new = x.clone()
        for row, near in rebuilt.items():
            new[row] = states[0][row] + sum(x[n] - states[0][n] for n in near) / len(near)
        return new

    with torch.no_grad():
        dense = model(**inputs).logits
        with prune(model, [Stage(Vision(1), IPCV(keep=0.5, whole=whole, neighbours=3))]) as run:
            pruned = model(**inputs).logits
            report = run.report()
        with before_block(model, 0, note), after_blocks(model, change):
            model(**inputs)  # which rows go
            with hidden_rows(model, gone.view(shape), 1 + whole):
                expected = model(**inputs).logits
        assert torch.equal(model(**inputs).logits, dense)
    torch.testing.assert_close(pruned, expected, atol=1e-4, rtol=0)
    assert (pruned - dense).abs().max() > 1e-4
    assert report.final_tokens == report.tokens  # the LLM gets them all
    assert report.encoder.rows[-1] < report.encoder.dense_rows[-1]


def plain_tome(keys, sizes, merged):
    """One round: for each even token that goes its odd partner."""
    unit = keys / keys.norm(dim=-1, keepdim=True)
    best = []
    for even in range(0, len(keys), 2):
        likeness = {odd: float(unit[even].double() @ unit[odd].double()) for odd in range(1, len(keys), 2)}
        odd = max(likeness, key=lambda one: (likeness[one], -one))
        best.append((-likeness[odd], even, odd))
    return {even: odd for _, even, odd in sorted(best)[:merged]}


# Rows that hold one mean at several positions have several keys once they are rotated.
@pytest.mark.parametrize(
    ("name", "proportional"), [*((name, False) for name in PLAIN), *((name, True) for name in NO_ROTATION)]
)
def test_tome_merges_by_the_keys_of_the_block_before(name, proportional):
    """Without rotation, attention to a mean that counts for s is attention to s rows that all hold it."""
    model, inputs = FAMILIES[name].build("eager"), prompt(name)
    pictures, shape = groups_of(name, model, inputs)
    gone = torch.zeros(shape[0] * shape[1], dtype=torch.bool)
    keys = []
    attention = attention_of(towers_of(model)[0][0])
    projection = attention.qkv if hasattr(attention, "qkv") else attention.k_proj

    def note(module, args, output):
        flat = output.reshape(-1, output.shape[-1])
        heads = getattr(attention, "num_key_value_heads", attention.num_heads)
        width = heads * attention.head_dim
        flat = flat[:, -2 * width : -width] if hasattr(attention, "qkv") else flat
        keys[:] = [flat.view(len(flat), heads, -1).mean(1)]

    def change(x):
        for groups in pictures:
            own = keys[0][groups].mean(1)
            partners = plain_tome(own, [1] * len(own), len(own) // 4)
            for target in set(partners.values()):
                members = [target, *(even for even, odd in partners.items() if odd == target)]
                mean = torch.stack([x[groups[m]] for m in members]).mean(0)
                for m in members:
                    x[groups[m]] = mean
                    gone[groups[m]] = m != target
        return x

    stages = [Stage(Vision(1), ToMe(keep=0.75, metric="keys", proportional=proportional))]
    with torch.no_grad():
        with prune(model, stages) as run:
            pruned, columns = model(**inputs).logits, run.columns(0)
        handle = projection.register_forward_hook(note)
        with before_block(model, 1, change):
            features = features_of(name, model, inputs)
            if not proportional:
                with hidden_rows(model, gone.view(shape), 1):
                    features = features_of(name, model, inputs)
        handle.remove()
        expected = answers_to(name, model, inputs, features, columns)
    for row, own in enumerate(columns):
        torch.testing.assert_close(pruned[row, own[own >= 0]], expected[row, own[own >= 0]], atol=1e-4, rtol=0)
    assert int(gone.sum()) == sum(len(p) // 4 * p.shape[1] for p in pictures)


def features_of(name, model, inputs):
    """The embeddings and keyword arguments that the text model gets."""
    found = []

    def see(module, args, kwargs):
        found.append(kwargs)

    handle = FAMILIES[name].text_model(model).register_forward_pre_hook(see, with_kwargs=True)
    model(**inputs)
    handle.remove()
    return found[0]


def answers_to(name, model, inputs, features, columns):
    """Logits of a prompt whose text model gets these features, and sees only these columns of each row."""
    family = FAMILIES[name]
    visual = torch.isin(inputs["input_ids"], torch.tensor(family.placeholder))
    alive = [own[own >= 0][visual[row, own[own >= 0]]] for row, own in enumerate(columns)]

    def give(module, args, kwargs):
        names = [n for n in ("inputs_embeds", "deepstack_visual_embeds") if n in features]
        return args, kwargs | {n: features[n] for n in names}

    handle = family.text_model(model).register_forward_pre_hook(give, with_kwargs=True, prepend=True)
    try:
        return oracle_logits(family, model, inputs, {0: alive})
    finally:
        handle.remove()


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "qwen2_5_vl", "internvl"])
@pytest.mark.parametrize("whole", [0, 1])
def test_the_flops_of_what_comes_back(name, whole):
    """In blocks whose attention sees everything, an MLP of what is left."""
    model, inputs = FAMILIES[name].build("eager"), FAMILIES[name].inputs([[2, Picture(4, 4), 3]])
    with torch.no_grad(), prune(model, [Stage(Vision(1), IPCV(keep=0.5, whole=whole))]) as run:
        with FlopCounterMode(display=False) as counter:
            model(**inputs)
        counts = counter.get_flop_counts()
        names = {module: name for name, module in model.named_modules()}
        blocks = [names[block] for block in towers_of(model)[0]]
        counted = sum(sum(ops.values()) for key, ops in counts.items() if key.endswith(tuple(blocks)))
    assert run.report().encoder.flops == counted


@pytest.mark.parametrize("width", [4, 5])
def test_a_wider_head_is_a_bias(width):
    made = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 3, 6, width, generator=made) for _ in range(3))
    sizes = torch.randint(1, 5, (2, 6), generator=made).float()
    bias = sizes.log()[:, None, None]
    expected = (query @ key.mT * 0.3 + bias).softmax(-1) @ value
    q, k, v = Proportional(sizes)(query, key, value, 0.3)
    torch.testing.assert_close((q @ k.mT * 0.3).softmax(-1) @ v[..., :width], expected)
    parts = Proportional(sizes.flatten()[None])  # kernels that take one picture after the other
    for i in range(2):
        q, k, v = parts(query[i : i + 1], key[i : i + 1], value[i : i + 1], 0.3)
        torch.testing.assert_close(((q @ k.mT * 0.3).softmax(-1) @ v[..., :width])[0], expected[i])


STAGES = [
    (Vision(1), IPCV(keep=0.5, whole=1)),
    (Vision(1), ILLaVA(keep=0.5)),
    (Vision(1), ToMe(keep=0.5, metric="keys")),
    (Vision(1), TokenTransforming(keep=0.5, metric="keys")),
    (Vision(1), MustDrop(keep=0.5, window=2)),
    (Vision(1), Downsample(keep=0.5)),
    (Vision(1), Random(keep=0.5)),
    (Pixels(), PixelPrune(keep=0.5)),
    (Pixels(), Downsample(keep=0.5)),
    (Pixels(), Random(keep=0.5)),
]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(("place", "method"), STAGES, ids=lambda one: getattr(one, "name", str(one)))
def test_on_every_family(name, place, method):
    """Keeping all changes nothing; the way of computing attention and who is beside one in the call do not matter."""
    inputs = prompt(name)
    together = []
    for kind in ("eager", "sdpa"):
        model = FAMILIES[name].build(kind)
        with torch.no_grad():
            dense = model(**inputs).logits
            with prune(model, [Stage(place, replace(method, keep=1.0))]):
                assert torch.equal(model(**inputs).logits, dense)
            with prune(model, [Stage(place, method)]) as run:
                together.append(model(**inputs).logits)
                report = run.report()
                rows = [[2, Picture(4, 6), 3], [1, Picture(4, 4), 5]]
                for i, row in enumerate(rows[: 1 if FAMILIES[name].counts_images else 2]):
                    alone = model(**FAMILIES[name].inputs([row], first=i)).logits[0]
                    torch.testing.assert_close(together[-1][i, -len(alone) :], alone, atol=2e-5, rtol=0)
            assert torch.equal(model(**inputs).logits, dense)
        assert (together[-1] - dense)[:, -1].abs().max() > 1e-5
        assert report.encoder.flops < report.encoder.dense_flops
        assert (report.final_tokens == report.tokens) == method.returns
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(*(logits[real] for logits in together), atol=2e-4, rtol=0)


def plain_illava(attention, keep):
    """The rule, one token at a time: which stay, and what the one that takes in the others becomes."""
    r = len(attention) - keep
    least = sorted(range(len(attention)), key=lambda i: (attention[i], i))[: r + 1]
    shares = [r + 1 - place for place in range(r + 1)]
    return sorted(set(range(len(attention))) - set(least[:r])), least[-1], dict(zip(least, shares, strict=True))


@pytest.mark.parametrize("keep", [1, 5, 12, 19])
def test_illava_follows_its_rule(keep):
    made = torch.Generator().manual_seed(keep)
    attention = torch.rand(3, 20, generator=made)
    found = select("illava", keep=keep, saliency=attention)
    for span in range(3):
        stays, target, shares = plain_illava(attention[span].tolist(), keep)
        assert found.index[span].tolist() == stays
        x = torch.randn(20, 4, generator=made)
        mixed = found.weights[span] @ x
        for place, token in enumerate(stays):
            expected = x[token]
            if token == target:
                expected = sum(x[t] * s for t, s in shares.items()) / sum(shares.values())
            torch.testing.assert_close(mixed[place], expected)


def test_the_rounds_of_one_paper_take_as_many_each():
    places = ILLaVA(keep=0.5).schedule(32)
    assert [place for place, _ in places] == [Vision(6), Vision(7), Vision(8), Vision(9)]
    left = 729
    for _, stage in ILLaVA(keep=361 / 729).schedule(32):
        before, left = left, round(stage.keep * 729)
        assert before - left == 92
    assert left == 361


def test_attention_inside_is_that_of_the_block_before():
    """What a stage reads of a block's attention is what eager attention pays there."""
    model, inputs = FAMILIES["llava"].build("eager"), prompt("llava")
    blocks = towers_of(model)[0]
    paid = []
    handle = blocks[0].self_attn.register_forward_hook(lambda module, args, output: paid.append(output[1]))
    with torch.no_grad(), prune(model, [Stage(Vision(1), ILLaVA(keep=5))]) as run:
        rankings = run.trace()
        model(**inputs)
        assert not rankings  # those are of the LLM's stages
        kept = [own - own.min() for own in run.kept[0]]
    handle.remove()
    received = paid[0].mean(1).mean(1)[:, 1:]
    for row, columns in enumerate(run.spans):
        stays, _, _ = plain_illava(received[row].tolist(), 5)
        first = columns.columns[0]
        assert [int(c) - first for c in run.kept[0][row]] == stays, kept


def test_stages_of_both_sides_beside_it():
    model, inputs = FAMILIES["qwen3_vl"].build(), prompt("qwen3_vl")
    stages = [Stage(Pixels(), Uniform(keep=0.75)), Stage(Vision(1), IPCV(keep=0.5, whole=1)), Stage(2, FastV(keep=0.5))]
    with torch.no_grad(), prune(model, stages) as run:
        model(**inputs)
        tokens = [sum(stage.after) for stage in run.report().stages]
    assert tokens[0] == tokens[1] > tokens[2]


@pytest.mark.parametrize(
    ("stages", "error", "words"),
    [
        (lambda: [Stage(Vision(0), IPCV())], BadInput, "vision_changes of the block before. Give at='vision:1'"),
        (lambda: [Stage(Pixels(), ILLaVA())], BadInput, "saliency of the encoder. Give at='vision:1'"),
        (lambda: [Stage(0, IPCV())], BadInput, "which only the vision encoder has"),
        (
            lambda: [Stage(Vision(1), IPCV()), Stage(Vision(2), Uniform(keep=0.5))],
            BadInput,
            "ipcv brings back .* before block 2 of the vision encoder",
        ),
        (lambda: [Stage(Vision(1), TokenTransforming(metric="keys", source="cls"))], Unsupported, "saliency:cls"),
        (lambda: [Stage(Vision(1), ToMe())], BadInput, "features, which there is not yet"),
        (lambda: [Stage(Vision(9), ILLaVA())], BadInput, "is no block of the vision encoder"),
    ],
)
def test_what_cannot_be_done_says_so(stages, error, words):
    model = FAMILIES["qwen2_vl"].build()
    with pytest.raises(error, match=words):
        prune(model, stages())
