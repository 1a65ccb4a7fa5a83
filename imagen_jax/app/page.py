"""The page: its fields, and what happens when they are used."""

import asyncio
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import gradio as gr

from imagen_jax.app.limits import Limits
from imagen_jax.app.making import Studio
from imagen_jax.app.models import Traits
from imagen_jax.data.icon_captions import STYLE_WORDS
from imagen_jax.devices.memory import shortage

TITLE = "imagen_jax"
PAINT = "rgba(139, 92, 246, 0.75)"  # what is below stays visible
LAYERS = [
    ("on the way up of a U-Net, all of a transformer", ""),
    ("all, as DAAM", "all"),
    ("of a U-Net: mid", "mid"),
    ("of a U-Net: down", "down"),
]
STYLES = [("any", ""), *(word["en"] for word in STYLE_WORDS.values())]
ONE_AT_A_TIME = {"concurrency_id": "images", "concurrency_limit": 1}
PRIVATE = {"api_visibility": "private", "show_progress": "hidden"}
Updates = list[dict[str, Any]]
FONT = ("system-ui", "sans-serif")
THEME = gr.themes.Default(
    primary_hue="indigo", neutral_hue="slate", font=FONT, font_mono=("ui-monospace", "monospace")
)
STYLE_SHEET = """
.gradio-container { width: 100%; max-width: 1240px !important; margin: 0 auto !important; }
#head { align-items: center; }
#head h1 { margin: 0; font-size: 1.5rem; white-space: nowrap; }
#note { min-height: 1.6rem; padding: 0 .3rem; }
#results .grid-wrap { max-height: none; }
#results .thumbnail-item, #results .preview img { background: #fff; }
footer { display: none !important; }
"""


def in_words(error: Exception) -> gr.Error:
    """What a visitor is told: nothing of the server but what was written for them."""
    if isinstance(error, ValueError):
        return gr.Error(str(error), print_exception=False)
    if (reason := shortage(error)) is not None:
        return gr.Error(f"There is too little memory for this: {reason}", print_exception=False)
    traceback.print_exception(error)
    return gr.Error(
        "Something went wrong; see the terminal where the app runs.", print_exception=False
    )


class Page:
    """The fields of the page by name, and the events on them.

    A new tab is a method like `_edit_tab`, and its kind of request a function in `making.KINDS`.
    """

    def __init__(self, studio: Studio):
        self.studio, self.limits = studio, studio.limits
        self.reading = asyncio.Semaphore(2)  # images whose settings are read at a time
        first = studio.models.traits(studio.models.names[0])
        with gr.Blocks(title=TITLE, fill_width=True, analytics_enabled=False) as self.blocks:
            self._head()
            with gr.Row():
                with gr.Column(scale=5, min_width=320):
                    self._subject(first)
                    with gr.Tabs():
                        buttons = {
                            "generate": self._text_tab(),
                            "edit": self._edit_tab(),
                            "inpaint": self._inpaint_tab(),
                            "upscale": self._upscale_tab(first),
                            "explain": self._explain_tab(),
                        }
                    self._more(first)
                with gr.Column(scale=6, min_width=320):
                    self._results()
            self._events(buttons)
            gr.api(self._models, api_name="models", queue=False, api_description="The models and "
                   "what each can do.")  # fmt: skip
        self.blocks.queue(max_size=self.limits.waiting, api_open=False)

    # ------------------------------------------------------------------------------ fields

    def _head(self) -> None:
        models = self.studio.models
        with gr.Row(elem_id="head"):
            with gr.Column(scale=5, min_width=150):
                gr.Markdown(f"# {TITLE}")
            self.model = gr.Dropdown(
                models.names,
                value=models.names[0],
                label="Model",
                info="or type a directory or a name on the Hugging Face hub"
                if models.free
                else None,
                allow_custom_value=models.free,
                scale=6,
                min_width=200,
                elem_id="model",
            )

    def _subject(self, traits: Traits) -> None:
        self.prompt = gr.Textbox(
            lines=1,  # Enter generates
            max_length=self.limits.characters,
            elem_id="prompt",
            **_prompt(traits),
        )
        with gr.Row():
            self.style = gr.Dropdown(
                STYLES, value="", label="Style", visible=traits.styles, min_width=150
            )
            self.num_images = gr.Slider(1, self.limits.images, min(4, self.limits.images), step=1,
                label="Images", min_width=150)  # fmt: skip

    def _text_tab(self) -> gr.Button:
        with gr.Tab("Text", id="text"):
            return gr.Button("Generate", variant="primary", elem_id="generate")

    def _edit_tab(self) -> gr.Button:
        with gr.Tab("Edit", id="edit"):
            self.edited = _image("Image to change", "edited")
            self.strength = gr.Slider(0.05, 1, 0.7, step=0.05, label="Strength",
                info="how much changes; 1 keeps nothing")  # fmt: skip
            return gr.Button("Edit", variant="primary", elem_id="edit")

    def _inpaint_tab(self) -> gr.Button:
        with gr.Tab("Inpaint", id="inpaint"):
            self.drawing = gr.ImageEditor(
                label="Paint over the part to replace",
                sources=("upload", "clipboard"),
                type="filepath",
                format="png",
                transforms=(),
                layers=False,
                brush=gr.Brush(default_size=24, colors=[PAINT], color_mode="fixed"),
                buttons=[],
                height=380,
                elem_id="drawing",
            )
            return gr.Button("Inpaint", variant="primary", elem_id="inpaint")

    def _upscale_tab(self, traits: Traits) -> gr.Button:
        with gr.Tab("Upscale", id="upscale", visible=traits.upsamples) as self.upscales:
            self.small = _image("Image to upscale", "small")
            return gr.Button("Upscale", variant="primary", elem_id="upscale")

    def _explain_tab(self) -> gr.Button:
        with gr.Tab("Explain", id="explain"):
            self.layers = gr.Dropdown(
                LAYERS,
                value="",
                label="Layers",
                info="each image is followed by maps of where its words count, red most",
                elem_id="layers",
            )
            return gr.Button("Explain", variant="primary", elem_id="explain")

    def _more(self, traits: Traits) -> None:
        shown = _shown_by(traits, self.limits)
        with gr.Accordion("More settings", open=False, elem_id="more"):
            self.negative = gr.Textbox(
                label="Negative prompt",
                max_length=self.limits.characters, **shown["negative"],
            )  # fmt: skip
            with gr.Row():
                self.seed = gr.Textbox("", label="Seed", placeholder="random", min_width=120)
                self.size = gr.Dropdown(label="Size", min_width=120, **shown["size"])
            with gr.Row():
                self.steps = gr.Slider(1, label="Steps", step=1, min_width=120, **shown["steps"])
                self.guidance = gr.Slider(1, 20, label="Guidance", step=0.5, min_width=120,
                    **shown["guidance"])  # fmt: skip

    def _results(self) -> None:
        self.gallery = gr.Gallery(
            label="Images", show_label=False, columns=2, object_fit="contain", height="auto",
            type="filepath", buttons=["download", "fullscreen"], interactive=False,
            elem_id="results",
        )  # fmt: skip
        with gr.Row():
            self.note = gr.Markdown("", elem_id="note")
            self.stop = gr.Button("Stop", variant="stop", size="sm", scale=0, min_width=80,
                visible=False, elem_id="stop")  # fmt: skip
        with gr.Accordion("Settings of the chosen image", open=False, elem_id="settings"):
            self.settings = gr.Textbox(
                show_label=False, lines=6, max_lines=14, buttons=["copy"], elem_id="settings_text",
                placeholder="choose an image above, or read the settings of a PNG",
            )  # fmt: skip
            with gr.Row():
                self.png = gr.UploadButton("Read from a PNG", file_types=[".png"], size="sm")
                self.again = gr.Button("Make this image again", size="sm", elem_id="again")

    # ------------------------------------------------------------------------------ events

    def _events(self, buttons: Mapping[str, gr.Button]) -> None:
        subject = {"prompt": self.prompt, "model": self.model, "style": self.style}
        steps = {"negative_prompt": self.negative, "steps": self.steps, "guidance": self.guidance}
        rest = {"seed": self.seed, "size": self.size, "num_images": self.num_images}
        strength = {"strength": self.strength}
        kinds = {
            "generate": subject | steps | rest,
            "edit": {"image": self.edited} | subject | strength | steps | rest,
            "inpaint": {"image": self.drawing} | subject | steps | rest,
            "upscale": {"image": self.small} | subject | rest,
            "explain": {"layers": self.layers} | subject | steps | rest,
            "again": {"settings": self.settings, "model": self.model},
        }
        for kind, inputs in kinds.items():
            triggers = [{**buttons, "again": self.again}[kind].click]
            triggers += [self.prompt.submit] if kind == "generate" else []
            shown = [self.stop, self.note]
            begun = gr.on(triggers, self._begin, outputs=shown, queue=False, **PRIVATE)
            made = begun.then(
                self._maker(kind),
                inputs_kwargs=inputs,
                outputs=[self.gallery, self.note],
                api_name=kind,
                api_description=f"{kind}: the PNGs, which hold their settings, and a line on them.",
                preprocess=False,
                show_progress="minimal",
                show_progress_on=self.note,
                **ONE_AT_A_TIME,
            )
            made.then(self._end, outputs=self.stop, queue=False, **PRIVATE)
            made.failure(lambda: "", outputs=self.note, queue=False, **PRIVATE)
            if kind != "again":
                made.success(
                    self._first_settings, self.gallery, self.settings,
                    preprocess=False, queue=False, **PRIVATE,
                )  # fmt: skip
        self.stop.click(self._stop, outputs=self.note, queue=False, **PRIVATE)
        self.blocks.unload(self._leave)
        quick = {"preprocess": False, "queue": False, **PRIVATE}
        self.gallery.select(self._chosen_settings, self.gallery, self.settings, **quick)
        self.png.upload(self._settings_in, self.png, self.settings, **quick)
        self.model.input(
            self._described, self.model,
            [self.prompt, self.style, self.upscales, self.negative, self.steps, self.guidance,
             self.size],
            **quick,
        )  # fmt: skip

    def _maker(self, kind: str) -> Callable[..., Iterator[tuple[list[str], str]]]:
        """What makes a kind of request, as the generator function that Gradio looks for."""
        # The type checker's wrapper around a `def` hides from Gradio that it is a generator.
        make: Any = lambda request, **fields: (  # noqa: E731
            yield from self._made(kind, request.session_hash, fields)
        )
        make.__annotations__ = {"request": gr.Request}
        return make

    def _made(
        self, kind: str, session: str | None, fields: Mapping[str, Any]
    ) -> Iterator[tuple[list[str], str]]:
        try:
            for shown in self.studio.make(kind, fields, session):
                yield [str(file) for file in shown.files], shown.note
        except Exception as error:
            raise in_words(error) from None

    def _begin(self, request: gr.Request) -> tuple[dict[str, Any], str]:
        self.studio.jobs.begin(request.session_hash)
        return gr.update(visible=True), "Waiting ..."

    def _end(self, request: gr.Request) -> dict[str, Any]:
        return gr.update(visible=self.studio.jobs.is_running(request.session_hash))

    def _stop(self, request: gr.Request) -> str:
        self.studio.jobs.stop(request.session_hash, waiting=True)
        return "Stopping after this step ..."

    def _leave(self, request: gr.Request) -> None:
        self.studio.jobs.stop(request.session_hash)

    async def _first_settings(self, gallery: Any) -> str:
        return await self._settings_of(gallery, 0)

    async def _chosen_settings(self, gallery: Any, chosen: gr.SelectData) -> str:
        return await self._settings_of(gallery, chosen.index)

    async def _settings_of(self, gallery: Any, place: Any) -> str:
        """Of an image in the gallery; "" of one that is not finished yet."""
        try:
            async with self.reading:
                return await asyncio.to_thread(self.studio.settings, gallery[place]["image"])
        except (ValueError, TypeError, LookupError):
            return ""

    async def _settings_in(self, png: Any) -> str:
        try:
            async with self.reading:
                return await asyncio.to_thread(self.studio.settings, png)
        except Exception as error:
            raise in_words(error) from None

    def _described(self, name: Any) -> Updates:
        """How the fields are for a model."""
        try:
            traits = self.studio.models.traits(name)
        except Exception as error:
            raise in_words(error) from None
        shown = _shown_by(traits, self.limits)
        return [
            gr.update(**_prompt(traits)),
            gr.update(value="", visible=traits.styles),
            gr.update(visible=traits.upsamples),
            *(gr.update(**shown[name]) for name in ("negative", "steps", "guidance", "size")),
        ]

    def _models(self) -> list[dict[str, Any]]:
        known = map(self.studio.models.traits, self.studio.models.names)
        return [
            {
                "name": traits.name,
                "reads": traits.reads,
                "class_names": list(traits.class_names),
                "sizes": list(traits.sizes),
                "steps": traits.steps,
                "guidance": traits.guidance,
                "distilled": traits.distilled,
                "upsamples": traits.upsamples,
                "styles": STYLES[1:] if traits.styles else [],
            }
            for traits in known
        ]

    def arguments(self, event: int | str) -> tuple[list[Any], bool] | None:
        """The data models of an event's inputs, and whether it tells what was selected, by its
        number or name; None where it is none.
        """
        for number, function in self.blocks.fns.items():
            if event in (number, function.api_name):
                models = [getattr(block, "data_model", None) for block in function.inputs]
                return models, function.collects_event_data
        return None


def _image(label: str, name: str) -> gr.Image:
    sources = ["upload", "clipboard"]
    return gr.Image(
        label=label, sources=sources, type="filepath", buttons=[], height=260, elem_id=name
    )


def _prompt(traits: Traits) -> dict[str, Any]:
    """What the field of the prompt is for."""
    if traits.reads == "text":
        return {"label": "Prompt", "placeholder": "red heart", "info": None, "interactive": True}
    if traits.reads is None:
        none = {"value": "", "placeholder": "this model reads no prompt", "interactive": False}
        return {"label": "Prompt", "info": None, **none}
    names = ", ".join(traits.class_names[:5])
    info = f"such as {names}" if names else None
    hint = "a class: its name or number"
    return {"label": "Class", "placeholder": hint, "info": info, "interactive": True}


def _shown_by(traits: Traits, limits: Limits) -> dict[str, dict[str, Any]]:
    """What a model makes of the fields: its defaults, and what it has no use for switched off."""
    guided = not traits.distilled and traits.reads is not None
    away = "what the images should not show"
    if traits.distilled:
        away = "not available: this model is distilled"
    return {
        "negative": {"value": "", "interactive": guided and traits.reads == "text", "info": away},
        "steps": {"value": traits.steps, "maximum": _most_steps(traits, limits.steps)},
        "guidance": {"value": traits.guidance, "interactive": guided},
        "size": {"choices": list(traits.sizes), "value": traits.sizes[-1]},
    }


def _most_steps(traits: Traits, most: int) -> int:
    return 2 * traits.steps if traits.distilled else max(min(100, most), traits.steps)
