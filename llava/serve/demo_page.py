"""Pages: a conversation about an image, what the model saw of it, and two settings side by side.

That of `build_page` is for a model of its own, that of `build_worker_page` for models behind a controller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr

from llava.conversation import conv_templates
from llava.engine.base import Generation
from llava.errors import UserError
from llava.model.multimodal_encoder.reducers.registry import METHODS
from llava.serve.demo_session import Demo, Settings, View
from llava.serve.worker_session import WorkerDemo

# What the page offers beside the model's own setting; of methods with a rule of their own, that rule.
REDUCTIONS = (
    *("TRIM:-1", "none", "TRIM:0.25", "TRIM:64", "Random:-1", "Pool:64"),
    *(f"{name}:{-1 if method.adaptive else 64}" for name, method in METHODS.items()),
)
INTRODUCTION = """# LLaVA-1.5 with TRIM

TRIM reads the question first and keeps the image patches that stand out for it; the others become one token.
Ask about an image, and see what the model saw."""
MOST_TOKENS = 1024  # of an answer
VOTES = ("upvote", "downvote", "flag")
# Nothing but the page is to call them, and nothing of them is listed.
_PRIVATE: dict[str, Any] = {"api_visibility": "private"}


@dataclass(frozen=True, slots=True)
class Example:
    """An image and a question to begin with.

    Attributes:
        image: File.
        question: About it.
    """

    image: Path
    question: str


def build_page(demo: Demo, examples: Sequence[Example] = ()) -> gr.Blocks:
    """Build the page of a demo.

    Args:
        demo: What the page is for.
        examples: To begin with.
    """
    with gr.Blocks(title="LLaVA-1.5 with TRIM", analytics_enabled=False) as page:
        gr.Markdown(f"{INTRODUCTION}\n\nModel: `{demo.name}`")
        with gr.Tab("Conversation"):
            _add_conversation(
                demo, examples, lambda: _reduction_input(demo, demo.reduction, "reduction"), _settings
            )
        with gr.Tab("Side by side"):
            _add_comparison(demo, examples)
    return page


def build_worker_page(
    demo: WorkerDemo, examples: Sequence[Example] = (), *, reload: bool = False, embed: bool = False
) -> gr.Blocks:
    """Build the page of models that a controller's workers serve.

    Args:
        demo: What the page is for.
        examples: To begin with.
        reload: Ask the controller for its models whenever a page is opened, not once.
        embed: Leave the title out, for a page inside of another.
    """
    served = demo.models()

    def offer(request: gr.Request) -> gr.Dropdown:
        names = demo.models() if reload else served
        wanted = request.query_params.get("model", "")
        return gr.Dropdown(choices=names, value=wanted if wanted in names else next(iter(names), None))

    with gr.Blocks(title="LLaVA", analytics_enabled=False) as page:
        if not embed:
            gr.Markdown("# LLaVA\n\nAsk about an image.")
        model = _add_conversation(
            demo,
            examples,
            lambda: gr.Dropdown(label="Model", choices=served, elem_id="model"),
            _model_settings,
        )
        page.load(offer, None, [model], **_PRIVATE)
    return page


def _add_conversation(
    demo: Demo | WorkerDemo,
    examples: Sequence[Example],
    add_choice: Callable[[], gr.Dropdown],
    read_settings: Callable[..., Settings],
) -> gr.Dropdown:
    """Add a conversation.

    Args:
        demo: Answers.
        examples: To begin with.
        add_choice: Adds the first setting, which is returned.
        read_settings: Makes settings of the values of the page.
    """
    session = gr.State(None)
    with gr.Row():
        with gr.Column(scale=2):
            image = _image_input("image")
            choice = add_choice()
            others = _other_settings(demo)
        with gr.Column(scale=3):
            chatbot = gr.Chatbot(
                label="Conversation", height=330, render_markdown=False, buttons=[], elem_id="chat"
            )
            question = gr.Textbox(label="Question", placeholder="Ask about the image", elem_id="question")
            with gr.Row():
                ask = gr.Button("Ask", variant="primary", min_width=80, elem_id="ask")
                regenerate = gr.Button("Regenerate", min_width=80, elem_id="regenerate")
                clear = gr.Button("Clear", min_width=80, elem_id="clear")
            with gr.Row():
                votes = [
                    (kind, gr.Button(kind.capitalize(), size="sm", min_width=80, elem_id=kind))
                    for kind in VOTES
                ]
        with gr.Column(scale=2):
            facts, kept = _facts("facts"), _kept("kept", visible=isinstance(demo, Demo))
    _add_examples(examples, image, question)

    def answer(
        request: gr.Request, state: Any, path: str | None, text: str, *values: Any
    ) -> Iterator[tuple[Any, ...]]:
        settings = read_settings(*values)
        for new_state, view in demo.ask(state, text, path or "", settings, _address(request)):
            # A question that failed stays in its box.
            yield new_state, text if view.error else "", view.history, *_shown(view)

    def answer_anew(request: gr.Request, state: Any, *values: Any) -> Iterator[tuple[Any, ...]]:
        for new_state, view in demo.regenerate(state, read_settings(*values), _address(request)):
            yield new_state, view.history, *_shown(view)

    settings = [choice, *others]
    shown = [chatbot, facts, kept]
    gr.on(
        [ask.click, question.submit],
        answer,
        inputs=[session, image, question, *settings],
        outputs=[session, question, *shown],
        **_PRIVATE,
    )
    regenerate.click(answer_anew, [session, *settings], [session, *shown], **_PRIVATE)
    gr.on(
        [clear.click, chatbot.clear],
        lambda: (None, "", [], "", None),
        inputs=None,
        outputs=[session, question, *shown],
        **_PRIVATE,
    )
    for kind, button in votes:
        button.click(_voting(demo, kind), [session], None, **_PRIVATE)
    return choice


def _add_comparison(demo: Demo, examples: Sequence[Example]) -> None:
    with gr.Row():
        with gr.Column(scale=2):
            image = _image_input("compare-image")
        with gr.Column(scale=3):
            question = gr.Textbox(label="Question", placeholder="Ask both", elem_id="compare-question")
            compare = gr.Button("Compare", variant="primary", elem_id="compare")
            others = _other_settings(demo)
    columns = []
    with gr.Row():
        for side, setting in (("left", demo.reduction), ("right", "none")):
            with gr.Column():
                reduction = _reduction_input(demo, setting, f"{side}-reduction")
                answer = gr.Textbox(label="Answer", interactive=False, lines=2, elem_id=f"{side}-answer")
                columns.append((reduction, answer, _facts(f"{side}-facts"), _kept(f"{side}-kept")))
    _add_examples(examples, image, question)

    def answer_both(
        request: gr.Request, path: str | None, text: str, left: str, right: str, *values: Any
    ) -> Iterator[list[Any]]:
        settings = (_settings(left, *values), _settings(right, *values))
        for views in demo.compare(text, path or "", *settings, _address(request)):
            yield [part for view in views for part in (view.answer, *_shown(view))]

    reductions = [reduction for reduction, *_ in columns]
    outputs = [part for _, *shown in columns for part in shown]
    gr.on(
        [compare.click, question.submit],
        answer_both,
        inputs=[image, question, *reductions, *others],
        outputs=outputs,
        **_PRIVATE,
    )


def _image_input(name: str) -> gr.Image:
    # As a file, which the model's own reader opens: it knows the limits and all color modes.
    return gr.Image(
        label="Image",
        type="filepath",
        image_mode=None,
        sources=["upload", "clipboard"],
        height=300,
        elem_id=name,
    )


def _reduction_input(demo: Demo, value: str, name: str) -> gr.Dropdown:
    return gr.Dropdown(
        label="Token reduction",
        info="or another setting, such as TRIM:100",
        choices=list(dict.fromkeys([demo.reduction, *REDUCTIONS])),
        value=value,
        allow_custom_value=True,
        elem_id=name,
    )


def _other_settings(demo: Demo | WorkerDemo) -> list[Any]:
    """Add the settings that `_settings` takes after the reduction."""
    templates = [(name, name) for name in sorted(conv_templates)]
    if not demo.template:
        templates.insert(0, ("by the model's name", ""))
    with gr.Accordion("Answer", open=False):
        return [
            gr.Dropdown(label="Conversation template", choices=templates, value=demo.template),
            gr.Slider(0, 1, value=0.2, step=0.1, label="Temperature", info="0 takes the likeliest token"),
            gr.Slider(0.05, 1, value=0.7, step=0.05, label="Top-p"),
            gr.Slider(1, MOST_TOKENS, value=512, step=1, label="Longest answer, in tokens"),
        ]


def _settings(reduction: str, template: str, temperature: float, top_p: float, length: float) -> Settings:
    """Return settings from the values of the page.

    Raises:
        gr.Error: If a value is out of its range.
    """
    try:
        generation = Generation(min(int(length), MOST_TOKENS), temperature, top_p if temperature else None)
    except (UserError, TypeError, ValueError) as error:
        raise gr.Error(str(error), print_exception=False) from error
    return Settings(reduction.strip(), template, generation)


def _model_settings(model: str | None, *values: Any) -> Settings:
    """Return settings from the values of a page of several models; the errors are those of `_settings`."""
    return replace(_settings("", *values), model=model or "")


def _facts(name: str) -> gr.Markdown:
    return gr.Markdown(elem_id=name)


def _kept(name: str, *, visible: bool = True) -> gr.Image:
    return gr.Image(
        label="What the model saw",
        type="pil",
        interactive=False,
        buttons=["fullscreen"],
        elem_id=name,
        visible=visible,
    )


def _shown(view: View) -> tuple[str, Any]:
    """Return what stands in the places of the facts and of the kept patches."""
    facts = f"**Not answered**: {view.error}" if view.error else view.facts
    return facts, view.kept


def _add_examples(examples: Sequence[Example], image: gr.Image, question: gr.Textbox) -> None:
    if examples:
        rows = [[str(example.image), example.question] for example in examples]
        gr.Examples(rows, [image, question], label="Examples", cache_examples=False, api_visibility="private")


def _voting(demo: Demo | WorkerDemo, kind: str) -> Any:
    def vote(request: gr.Request, state: Any) -> None:
        if demo.vote(kind, state, _address(request)):
            gr.Info("Thank you.")
        else:
            gr.Warning("There is nothing to judge yet, or nothing is written down here.")

    return vote


def _address(request: gr.Request) -> str:
    return request.client.host if request.client else ""
