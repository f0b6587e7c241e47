"""Pruned models inside lmms-eval: found by entry point, right in batches, measured sample by sample."""

from __future__ import annotations

import copy
from importlib.metadata import entry_points

import pytest
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.models import get_model, list_available_models
from lmms_eval.tasks import TaskManager

from eval.worlds import judge
from eval.worlds.scenes.world import SCENES
from tests.draw import cases
from tests.fake_lmms import Batched, request
from tokenprune import BadInput, Plan, Unsupported, scenes
from tokenprune.chat import Chat
from tokenprune.evaluation.lmms_eval import WRAPPED
from tokenprune.evaluation.lmms_eval.meter import Measured
from tokenprune.evaluation.lmms_eval.model import Tokenprune, generation
from tokenprune.evaluation.lmms_eval.responses import KEY, _add_key
from tokenprune.evaluation.lmms_eval.settings import plan_of
from tokenprune.evaluation.lmms_eval.wrapped import Documents, Pruned, arguments_of

MODEL = f"pretrained={scenes.MODEL}"


@pytest.fixture(scope="module")
def tasks(packed_tasks):
    return TaskManager("ERROR", include_path=str(packed_tasks), include_defaults=False)


@pytest.fixture
def evaluate(tasks):
    """Run a task in this process; samples by number of the document."""

    def run(model, arguments, task="scenes", batch=1, **options):
        found = simple_evaluate(
            model=model,
            model_args=arguments,
            tasks=[task],
            task_manager=tasks,
            batch_size=batch,
            device="cpu",
            verbosity="ERROR",
            bootstrap_iters=0,
            **options,
        )
        samples = {one["doc_id"]: one for one in found["samples"][task]}
        return found["results"][task], [samples[i] for i in range(len(samples))]

    return run


def words(samples):
    return [one["filtered_resps"][0] for one in samples]


def costs(samples):
    return [one["token_counts"][0] for one in samples]


def test_the_entry_point_is_found():
    assert "tokenprune" in {entry.name for entry in entry_points(group="lmms_eval.models")}
    names = list_available_models()
    assert {"tokenprune", *(f"tokenprune_{name}" for name in WRAPPED)} <= set(names)
    for name in WRAPPED:
        cls = get_model(f"tokenprune_{name}")
        assert issubclass(cls, Pruned)
        assert issubclass(cls, get_model(name))
        assert cls.is_simple is get_model(name).is_simple


def test_options_of_methods_do_not_hide_behind_arguments_of_models():
    """An option that a wrapped class takes for its own would never reach the method but for its prefix."""
    from tokenprune.evaluation.lmms_eval.settings import WHERE
    from tokenprune.methods.base import options_of
    from tokenprune.methods.registry import all_methods

    options = {field.name for cls in all_methods().values() for field in options_of(cls)} | {*WHERE, "method"}
    for name in WRAPPED:
        assert options & arguments_of(get_model(name)) <= {"temperature"}, name
    assert not options & arguments_of(Tokenprune) - {"method"}


def test_the_unpruned_baseline_is_the_model_itself(evaluate):
    """The same questions, asked without any harness."""
    _, samples = evaluate("tokenprune", MODEL, batch=4)
    chat = Chat.load("scenes")
    by_type = [judge.answers(SCENES, chat, judge.questions(SCENES, kind, 2)) for kind in SCENES.types]
    assert words(samples) == [text for turn in zip(*by_type, strict=True) for text in turn]
    assert {one["visual_tokens"] for one in costs(samples)} == {one["kept_tokens"] for one in costs(samples)} == {144}


@cases("method", ["divprune,keep=0.25", "fastv,at=4,keep=0.25"], lambda _: None)
def test_batches_answer_like_single_questions(evaluate, method):
    one, many = (evaluate("tokenprune", f"{MODEL},method={method}", batch=batch) for batch in (1, 5))
    assert one[0] == many[0]
    assert words(one[1]) == words(many[1])
    for cost in costs(many[1]):
        assert (cost["visual_tokens"], cost["kept_tokens"]) == (144, 36)
        assert cost["prefill_ms"] > 0
    assert {cost["batch"] for cost in costs(many[1])} == {5, 1}


def test_what_is_measured(evaluate):
    """KV bytes are those of the cache: layers x 2 x heads x head size x 4 bytes for each row that is left."""
    _, samples = evaluate("tokenprune", f"{MODEL},method=divprune,keep=0.25")
    config = Chat.load("scenes").model.config.text_config
    each = 2 * 4 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    for cost in costs(samples):
        assert cost["kv_bytes"] == each * (cost["input_tokens"] - 144 + 36)
        assert cost["average_tokens"] == 36.0
        assert cost["output_tokens"] >= 2


def test_videos(evaluate):
    results, samples = evaluate(
        "tokenprune", f"pretrained={scenes.VIDEO_MODEL},method=fastvid,keep=0.25", "scenes_video", batch=4
    )
    assert {cost["visual_tokens"] for cost in costs(samples)} == {256}
    assert {cost["kept_tokens"] for cost in costs(samples)} == {64}
    assert results["score,none"] > 0.4


@cases(
    "simple, method",
    [(simple, method) for simple in (False, True) for method in ("none", "divprune,keep=0.25")],
    lambda simple, _: simple,
)
def test_lmms_evals_own_models(evaluate, monkeypatch, simple, method):
    """The same answers as ours in the chat protocol, where both write the prompt alike; costs in both."""
    given = f"{MODEL},method={method},device_map=cpu,dtype=float32"
    theirs = evaluate("tokenprune_llava_hf", given, force_simple=simple)[1]
    if not simple:
        assert words(theirs) == words(evaluate("tokenprune", f"{MODEL},method={method}")[1])
    kept = 144 if method == "none" else 36
    assert {(one["visual_tokens"], one["kept_tokens"]) for one in costs(theirs)} == {(144, kept)}


def test_documents_tell_rows_apart():
    """Costs go to the requests in the order in which a model looked its documents up."""
    model = Batched(method="token_transforming", keep=0.25, prune_temperature=0.1)
    assert model.plan == Plan.of("token_transforming", keep=0.25, temperature=0.1)
    requests = [request(i, {"max_new_tokens": 3}) for i in range(5)]
    before = copy.deepcopy([one.args[1] for one in requests])
    found = model.generate_until(requests)
    assert [one.token_counts.cost.visual_tokens for one in found] == [144, 288, 144, 288, 144]
    assert [one.token_counts.cost.kept_tokens for one in found] == [36, 72, 36, 72, 36]
    assert [one.args[1] for one in requests] == before, "the model wrote into the harness's settings"
    assert model.task_dict is Batched.tasks


def test_a_failure_that_a_model_hides_is_told():
    """keep=200 is more than a picture has: without the check, every answer would count as wrong."""
    model = Batched(method="divprune", keep=200)
    with pytest.raises(Unsupported, match="3 prompts failed inside Batched"):
        model.generate_until([request(i, {"max_new_tokens": 3}) for i in range(5)])


def test_rows_that_cannot_be_told_apart_have_no_cost():
    model = Batched(method="divprune", keep=0.25)
    found = model.generate_until([request(i, {"max_new_tokens": 3}) for i in range(2)])
    assert all(one.token_counts.cost for one in found)
    documents = Documents(model.tasks)
    documents["pictures"]["test"][0]
    assert len(documents["pictures"]["test"]) == 5
    assert documents.costs([]) == {}


@pytest.mark.parametrize("ask", ["loglikelihood", "generate_until_multi_round"])
def test_other_requests_are_pruned_too(ask):
    dense, pruned = (getattr(Batched(**own), ask)([]) for own in ({}, {"method": "divprune", "keep": 0.25}))
    assert dense - pruned == 108


def test_the_cache_knows_the_pruning(evaluate, tmp_path):
    """Asked again, all answers come out of the cache; with another budget, or a recipe's file that says something
    else, none does."""
    from lmms_eval.caching.response_cache import ResponseCache

    def hits(arguments):
        seen = []
        real = ResponseCache.finalize

        def finalize(self, **options):
            seen.append(self.get_stats())
            return real(self, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ResponseCache, "finalize", finalize)
            _, samples = evaluate("tokenprune", f"{MODEL},{arguments}", batch=8, use_cache=str(tmp_path / "cache"))
        return seen[0]["hits"], samples

    recipe = tmp_path / "mine.yaml"

    def edited(text):
        recipe.write_text(text)
        return hits(f"method={recipe}")

    first, again, other = (hits(f"method=divprune,keep={keep}") for keep in (0.25, 0.25, 0.5))
    assert (first[0], again[0], other[0]) == (0, 16, 0)
    assert words(first[1]) == words(again[1])
    assert costs(again[1]) == [None] * 16, "what was not run was not measured"
    written = "model: x\nstages: [{at: 0, method: divprune, keep: 0.25}]\n"
    assert edited(written)[0] == 0
    assert edited(f"# the same\n\n{written}")[0] == 16
    assert edited(written.replace("0.25", "0.5"))[0] == 0
    assert edited(written)[0] == 16, "the answers of the first are still there"


def test_the_cache_of_other_models_is_as_ever():
    """No more in their keys, and a cache that has no place for it is refused for ours."""
    asked = []

    class Cache:
        def execute(self, lm, reqtype, requests):
            asked.append(vars(self).copy())
            return requests

    run, ours, theirs = _add_key(Cache.execute), Batched(), type("Theirs", (), {})()
    cache = Cache()
    assert run(cache, theirs, "generate_until", [1]) == [1]
    with pytest.raises(Unsupported, match="Leave out --use_cache"):
        run(cache, ours, "generate_until", [1])
    setattr(cache, KEY, "x")
    run(cache, ours, "generate_until", [1])
    assert asked[0] == {}
    assert asked[1][KEY] != "x"
    assert vars(cache) == {KEY: "x"}


def test_settings_are_not_written_into():
    settings = {"max_new_tokens": 5, "temperature": 0, "top_p": 1.0, "do_sample": True, "until": ["x"]}
    before = dict(settings)
    assert generation(settings) == {"max_new_tokens": 5, "do_sample": False}
    assert generation({"temperature": 0.2, "top_p": 0.9}) == {
        "temperature": 0.2,
        "top_p": 0.9,
        "max_new_tokens": 1024,
        "do_sample": True,
    }
    assert settings == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(method="divprun"), "Did you mean 'divprune'"),
        (dict(method="divprune", kep=0.1), "Did you mean 'keep'"),
        (dict(method="divprune", keep=1.5), "1.5"),
        (dict(keep=0.1), "method=none takes no keep"),
        (dict(method="sparsevlm_64", keep=0.1), "keep cannot be changed beside a recipe"),
        (dict(batch_size="auto"), "batch_size='auto'"),
        (dict(pretrained="./nowhere"), "no model folder"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(BadInput, match=message):
        Tokenprune(**({"pretrained": "scenes"} | arguments))


def test_what_is_not_supported():
    model = Tokenprune("scenes", device="cpu")
    for ask in (model.loglikelihood, model.generate_until_multi_round):
        with pytest.raises(Unsupported, match="not supported"):
            ask([])
    with pytest.raises(Unsupported, match="audio"):
        model._part({"type": "audio", "url": "x"})
    with pytest.raises(Unsupported, match="piece of a video"):
        model._part({"type": "video", "url": "x", "start_time": 1.0})
    with pytest.raises(Unsupported, match="typical_p"):
        model._generate([[]], {"typical_p": 0.3})


def test_logged_counts():
    assert Measured(input_tokens=3).to_dict() == {"input_tokens": 3}
    assert plan_of("none", {"keep": None}).attach(None) is None
