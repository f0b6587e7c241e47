"""The page: controls on the left, both answers and what happened on the right."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from tokenprune.catalogue import facts
from tokenprune.demo.controls import NO_METHOD, PUBLISHED, plan
from tokenprune.demo.session import EXAMPLES, Session
from tokenprune.engine.run import language_layers
from tokenprune.engine.setup import POSITIONS
from tokenprune.errors import BadInput, TokenpruneError
from tokenprune.media.readers import READERS
from tokenprune.methods.registry import all_methods
from tokenprune.recipes import load_recipe, recipe_names

UPLOAD_LIMIT = "50mb"
QUEUE = 32
PICTURES = "40vh"  # high: leaves room for the answers above and the figures below
AUTOMATIC = "automatic"
FAILED = "The demo failed at this. Its log, where it was started, says why."
PLAIN = ["system-ui", "sans-serif"]  # fonts of the reader's machine: none is fetched


log = logging.getLogger("tokenprune.demo")


def build(session: Session) -> gr.Blocks:
    """The app around a session; `serve` starts it."""
    layers = len(language_layers(session.chat("scenes").model))
    decoding = [name for name, cls in all_methods().items() if cls.decodes]
    first, options = describe_method("divprune", layers)
    inside = [name for name in all_methods() if name not in decoding]
    with gr.Blocks(title="tokenprune", analytics_enabled=False, fill_width=True, delete_cache=(600, 3600)) as app:
        gr.Markdown("# tokenprune\nThe same question with all visual tokens, and with a few of them.", elem_id="head")
        with gr.Row():
            with gr.Column(scale=3, min_width=280):
                file = gr.File(label="image or video", type="filepath", elem_id="file", height=100)
                opened = gr.Markdown(elem_id="opened")
                question = gr.Textbox(label="question", lines=1, max_lines=3, elem_id="question")
                ask = gr.Button("Ask", variant="primary", elem_id="ask")
                choices = [*inside, *decoding, *recipe_names()]
                method = gr.Dropdown(choices, value="divprune", label="method or recipe", elem_id="method")
                about = gr.Markdown(first, elem_id="about")
                keep = gr.Slider(0.02, 1.0, value=0.25, step=0.01, label="keep", elem_id="keep")
                with gr.Accordion("places and options", open=False):
                    at = gr.Dropdown(
                        [PUBLISHED, "pixels", "vision:1", *map(str, range(layers)), "decode"],
                        value=PUBLISHED,
                        label="before layer, or before the vision encoder",
                        elem_id="at",
                    )
                    positions = gr.Radio(list(POSITIONS), value="original", label="positions", elem_id="positions")
                    second = gr.Dropdown([NO_METHOD, *inside], value=NO_METHOD, label="second stage")
                    second_keep = gr.Slider(0.02, 1.0, value=0.5, step=0.01, label="keep of what the first left")
                    second_at = gr.Slider(0, layers - 1, value=layers // 2, step=1, label="before layer")
                    extra = gr.Textbox(value="", label="options, as name=value; name=value", elem_id="extra")
                    known = gr.Markdown(options, elem_id="options")
                    reader = gr.Dropdown([AUTOMATIC, *READERS], value=AUTOMATIC, label="video reader", elem_id="reader")
            with gr.Column(scale=10, min_width=320, elem_id="results"):
                with gr.Row():
                    text: dict[str, Any] = dict(
                        lines=2, max_lines=2, interactive=False, autoscroll=False, min_width=280
                    )
                    dense = gr.Textbox(label="all tokens", elem_id="dense", **text)
                    pruned = gr.Textbox(label="pruned", elem_id="pruned", **text)
                with gr.Row():
                    looks: dict[str, Any] = dict(
                        format="png", height=PICTURES, interactive=False, buttons=[], min_width=240
                    )
                    many: dict[str, Any] = dict(preview=True, object_fit="contain", **looks)
                    picture = gr.Image(label="what is asked about", elem_id="seen", **looks)
                    stages = gr.Gallery(label="what is left at each stage", elem_id="stages", **many)
                    scores = gr.Gallery(label="what stages ranked by", elem_id="scores", **many)
                figures = gr.HTML(elem_id="figures")
                line = gr.Code(label="in Python", language="python", interactive=False, lines=1, elem_id="line")
        controls: list[Any] = [method, keep, at, positions, extra, second, second_keep, second_at]
        gr.Examples(EXAMPLES, inputs=[file, question], label="examples")

        def show_preview(path: str | None, by: str) -> tuple[Any, str]:
            return (None, "") if path is None else tell(lambda: session.preview(path, reader_of(by)))

        def describe(name: str) -> tuple[str, str]:
            return describe_method(name, layers)

        def write_call(*values: Any) -> str:
            try:
                return plan(*values).python()
            except BadInput as error:
                return f"# {error}"

        def answer_question(path: str | None, text: str, *values: Any) -> Iterator[tuple]:
            *wanted, by = values
            steps = tell(lambda: session.ask(path, text, plan(*wanted), reader_of(by)))
            while (found := tell(lambda: next(steps, None))) is not None:
                seen = gr.skip() if found.seen is None else found.seen
                pictures = seen, last(found.stages), last(found.scores)
                yield found.dense, found.pruned, *pictures, figures_of(found.rows), found.opened

        for shown in (file, reader):
            shown.change(show_preview, [file, reader], [picture, opened], api_visibility="private")
        method.change(describe, method, [about, known], api_visibility="private", show_progress="hidden")
        for control in controls:
            control.change(write_call, controls, line, api_visibility="private", show_progress="hidden")
        app.load(write_call, controls, line, api_visibility="private")
        results = [dense, pruned, picture, stages, scores, figures, opened]
        pressed = gr.on(
            [ask.click, question.submit],
            answer_question,
            [file, question, *controls, reader],
            results,
            api_name="ask",
            show_progress_on=[dense, pruned],
        )
        pressed.then(write_call, controls, line, api_visibility="private")
    return app.queue(max_size=QUEUE, default_concurrency_limit=1)


def reader_of(choice: str) -> str | None:
    """The `reader=` that a choice of the menu stands for."""
    return None if choice == AUTOMATIC else choice


def tell(work: Any) -> Any:
    """Do it; what tokenprune refuses becomes a message on the page, and any other failure one without its words: those
    may name what is on the server. They go to its log."""
    try:
        return work()
    except TokenpruneError as error:
        raise gr.Error(str(error), title="That does not work", duration=None, print_exception=False) from error
    except Exception as error:
        log.exception("a question failed")
        raise gr.Error(FAILED, title="That failed", duration=None, print_exception=False) from error


def last(pictures: list[tuple[Image.Image, str]]) -> Any:
    """Pictures for a gallery, the last one in front."""
    return gr.Gallery(pictures, selected_index=len(pictures) - 1 if pictures else None)


def figures_of(rows: list[list[str]]) -> str:
    """Rows of (name, all tokens, pruned, share) as small cards."""
    cards = [
        f"<div><dt>{escape(name)}</dt><dd>{escape(f'{dense} → {pruned}' if dense else pruned)}</dd>"
        f"<dd>{escape(share) or '&nbsp;'}</dd></div>"
        for name, dense, pruned, share in rows
    ]
    return f'<dl class="figures">{"".join(cards)}</dl>' if cards else ""


def describe_method(name: str, layers: int) -> tuple[str, str]:
    """What a method or a recipe is, and the options of a method that are its own, as Markdown."""
    if name not in all_methods():
        recipe = load_recipe(name)
        source = "" if recipe.published is None else f" {recipe.published.source}."
        return f"A recipe for {recipe.model}: its stages, budgets and positions are fixed.{source}", ""
    cls = all_methods()[name]
    own = [
        f"- `{f.name}={facts.shown(f.default)}` {facts.meaning(f)}" for f in facts.own_options(cls) if f.name != "keep"
    ]
    return f"{facts.summary(cls, layers)}.", "\n".join(own)


def serve(session: Session, host: str, port: int) -> None:
    """Start the app and wait. Only `host` is listened on; no file of the server is readable but what was uploaded."""
    build(session).launch(
        server_name=host,
        server_port=port,
        share=False,
        show_error=False,  # of gradio's own, which may name folders; `told` shows ours
        quiet=True,
        ssr_mode=False,
        enable_monitoring=False,
        max_file_size=UPLOAD_LIMIT,
        footer_links=[],
        css_paths=Path(__file__).with_name("page.css"),
        theme=gr.themes.Default(font=PLAIN, font_mono=["monospace"]),
    )
