"""The page: controls on the left, both answers and what happened on the right."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from tokenprune.cli.list import describe, shown
from tokenprune.demo.plan import NO_METHOD, PUBLISHED, plan
from tokenprune.demo.session import EXAMPLES, Session
from tokenprune.engine.run import POSITIONS, language_layers
from tokenprune.errors import BadInput, TokenpruneError
from tokenprune.methods.base import Method, options_of, places
from tokenprune.methods.registry import all_methods
from tokenprune.recipes import load_recipe, recipe_names

UPLOAD_LIMIT = "50mb"
QUEUE = 32
PLAIN = ["system-ui", "sans-serif"]  # fonts of the reader's machine: none is fetched


def build(session: Session) -> gr.Blocks:
    """The app around a session; `serve` starts it."""
    layers = len(language_layers(session.chat("image").model))
    decoding = [name for name, cls in all_methods().items() if cls.decodes]
    inside = [name for name in all_methods() if name not in decoding]
    with gr.Blocks(title="tokenprune", analytics_enabled=False, delete_cache=(600, 3600)) as app:
        gr.Markdown("# tokenprune\nThe same question with all visual tokens, and with a few of them.")
        with gr.Row():
            with gr.Column(scale=1):
                file = gr.File(label="image or video", type="filepath", elem_id="file", height=110)
                preview = gr.Image(label="what is asked about", interactive=False, format="png", height=220, buttons=[])
                question = gr.Textbox(label="question", lines=2, elem_id="question")
                choices = [*inside, *decoding, *recipe_names()]
                method = gr.Dropdown(choices, value="divprune", label="method or recipe", elem_id="method")
                about = gr.Markdown(describe_method("divprune"), elem_id="about")
                keep = gr.Slider(0.02, 1.0, value=0.25, step=0.01, label="keep", elem_id="keep")
                positions = gr.Radio(list(POSITIONS), value="original", label="positions", elem_id="positions")
                at = gr.Dropdown(
                    [PUBLISHED, *map(str, range(layers)), "decode"], value=PUBLISHED, label="before layer", elem_id="at"
                )
                with gr.Accordion("a second stage, and further options", open=False):
                    second = gr.Dropdown([NO_METHOD, *inside], value=NO_METHOD, label="second stage")
                    second_keep = gr.Slider(0.02, 1.0, value=0.5, step=0.01, label="keep of what the first left")
                    second_at = gr.Slider(0, layers - 1, value=layers // 2, step=1, label="before layer")
                    extra = gr.Textbox(value="", label="options, as name=value; name=value", elem_id="extra")
                ask = gr.Button("Ask", variant="primary", elem_id="ask")
            with gr.Column(scale=2):
                with gr.Row():
                    dense = gr.Textbox(label="all tokens", lines=3, interactive=False, elem_id="dense")
                    pruned = gr.Textbox(label="pruned", lines=3, interactive=False, elem_id="pruned")
                looks = dict(columns=1, format="png", object_fit="contain", height=520, interactive=False, buttons=[])
                with gr.Row():
                    stages = gr.Gallery(label="what is left at each stage", elem_id="stages", **looks)
                    scores = gr.Gallery(label="what stages ranked by", elem_id="scores", **looks)
                figures = gr.Dataframe(
                    headers=["", "all tokens", "pruned", "of that"], interactive=False, elem_id="figures"
                )
                line = gr.Code(label="in Python", language="python", interactive=False, elem_id="line")
        controls = [method, keep, at, positions, extra, second, second_keep, second_at]
        gr.Examples(EXAMPLES, inputs=[file, question], label="examples")

        def previewed(path: str | None) -> Any:
            return None if path is None else told(lambda: session.preview(path))

        def written(*values: Any) -> str:
            try:
                return plan(*values).line
            except BadInput as error:
                return f"# {error}"

        def asked(path: str | None, text: str, *values: Any) -> Iterator[tuple]:
            steps = told(lambda: session.ask(path, text, plan(*values)))
            while (found := told(lambda: next(steps, None))) is not None:
                yield found.dense, found.pruned, found.stages, found.scores, found.rows

        file.change(previewed, file, preview, api_visibility="private")
        method.change(describe_method, method, about, api_visibility="private", show_progress="hidden")
        for control in controls:
            control.change(written, controls, line, api_visibility="private", show_progress="hidden")
        app.load(written, controls, line, api_visibility="private")
        results = [dense, pruned, stages, scores, figures]
        pressed = gr.on([ask.click, question.submit], asked, [file, question, *controls], results, api_name="ask")
        pressed.then(written, controls, line, api_visibility="private")
    return app.queue(max_size=QUEUE, default_concurrency_limit=1)


def told(work: Any) -> Any:
    """Do it; what tokenprune refuses becomes a message on the page."""
    try:
        return work()
    except TokenpruneError as error:
        raise gr.Error(str(error), title="That does not work", duration=None, print_exception=False) from error


def describe_method(name: str) -> str:
    """What the registry knows of a method or a recipe, as Markdown."""
    if name not in all_methods():
        recipe = load_recipe(name)
        source = "" if recipe.published is None else f" {recipe.published.source}."
        return f"A recipe for {recipe.model}: its stages, budgets and positions are fixed.{source}"
    cls = all_methods()[name]
    common = {field.name for field in options_of(Method)}
    own = [f"`{f.name}={shown(f.default)}` {f.metadata['help']}" for f in options_of(cls) if f.name not in common]
    text = f"{cls.kind}, {cls.paper}, {describe(*places(cls))} (of 32 layers)."
    return text + "".join(f"\n- {option}" for option in own)


def serve(session: Session, host: str, port: int) -> None:
    """Start the app and wait. Only `host` is listened on; no file of the server is readable but what was uploaded."""
    build(session).launch(
        server_name=host,
        server_port=port,
        share=False,
        show_error=True,
        quiet=True,
        ssr_mode=False,
        enable_monitoring=False,
        max_file_size=UPLOAD_LIMIT,
        footer_links=[],
        theme=gr.themes.Default(font=PLAIN, font_mono=["monospace"]),
    )
