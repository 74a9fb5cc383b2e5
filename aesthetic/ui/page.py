"""The page: what is where, and what its buttons do."""

import html
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from shutil import rmtree
from typing import Any

import gradio as gr
import pandas as pd

from ..cancellation import Predictions
from ..errors import AestheticError
from ..images.sheet import steps_label
from ..request import FIELDS, SOURCES, Request
from ..service import Result, Service
from .examples import OPENING, STOPS, STRIP, thumbnail
from .form import component, culprit, request
from .make import Made, make

__all__ = ["CSS", "Page"]

CSS = ".gradio-container {max-width: 1200px !important; margin: auto}"
DRAW: dict[str, Any] = {"aesthetic_sweep": None}
SWEEP: dict[str, Any] = {"num_outputs": 1, "aesthetic_until": None}
TURN: dict[str, Any] = {"concurrency_id": "turn", "concurrency_limit": 1, "preprocess": False}
QUICK: dict[str, Any] = {"queue": False, "show_progress": "hidden"}
LOOK: dict[str, Any] = {
    "preview": True,
    "selected_index": 4,
    "interactive": False,
    "buttons": ["download", "fullscreen"],
}


class Page:
    """One page for everybody: what differs between browser tabs is in its components."""

    def __init__(self, service: Service, check: Callable[[Request], None]) -> None:
        self.service, self.refuse, self.predictions = service, check, Predictions()
        self.names = service.registry.present(service.model.clip_space or "")
        self.opening = {"aesthetic_sweep": "0,1,2,3,5,10,20"} | (OPENING if service.model.snapshot.bundled else {})
        self.fields: dict[str, Any] = {}
        self.cancels: list[gr.Button] = []
        self.folder = Path(tempfile.mkdtemp())
        with gr.Blocks(title="Aesthetic gradients", analytics_enabled=False, delete_cache=(3600, 86400)) as self.blocks:
            self._place()
            self._connect()

    def _place(self) -> None:
        gr.Markdown(
            f"# Aesthetic gradients\nDraw in the style of images that you like. Model: {self.service.model.snapshot.name}"
        )
        self._add("prompt")
        with gr.Row():
            with gr.Column(scale=3), gr.Tabs() as self.tabs:
                with gr.Tab("Draw", id="draw"):
                    self._place_draw()
                with gr.Tab("How far"):
                    self._place_sweep()
                with gr.Tab("Your own aesthetic"):
                    self._place_own()
            with gr.Column(scale=2):
                self._place_settings()

    def _place_draw(self) -> None:
        self.draw_button = self._action("Draw")
        self.drawn = gr.Gallery(STRIP, label="Images", height=440, **LOOK)
        self.facts = gr.Textbox("a cat, 0 to 20 steps towards night", label="How it was drawn", interactive=False)
        self.again = gr.Button("Start from this image")
        with gr.Accordion("Recipe: what draws it again", open=False):
            self.recipe = gr.JSON(show_label=False)

    def _place_sweep(self) -> None:
        self.sweep_button, self.stops = self._action("Draw the strip"), gr.State(STOPS)
        self.steps = gr.Slider(0, STOPS[-1][0], 5, step=1, label="Drag: steps towards the aesthetic")
        with gr.Row():
            self.strips = [gr.Gallery(STRIP, label="night", height=360, visible=show, **LOOK) for show in (True, False)]
        self.curve = gr.LinePlot(_curve({"night": STOPS}), x="steps", y="value", color="what", height=200)
        self.beside = gr.Dropdown(["", *self.names], value="", label="Beside it: a second aesthetic")
        self._add("aesthetic_sweep")

    def _place_own(self) -> None:
        self.files = gr.File(label="Images that you like, or one zip or tar of them", file_count="multiple", height=160)
        self.name = gr.Textbox("mine", label="Name of the aesthetic", max_length=60)
        self.make_button = self._action("Make the aesthetic")
        self.report = gr.Textbox(label="What was read", lines=4, interactive=False)
        self.try_button = gr.Button("Draw the prompt with it", interactive=False)
        self.download = gr.DownloadButton("Download it (.safetensors)", interactive=False)

    def _place_settings(self) -> None:
        first = self.opening.get("aesthetic_embedding") or next(iter(self.names), None)
        self.chosen, self.own = gr.State({"aesthetic_embedding": first}), gr.State([])
        look: dict[str, Any] = {
            "columns": 4,
            "height": 340,
            "allow_preview": False,
            "interactive": False,
            "buttons": [],
        }
        selected = self.names.index(first) if first else None
        self.choice = gr.Gallery(self._choice([]), label="Aesthetic", selected_index=selected, **look)
        self._add("aesthetic_steps", "seed")
        with gr.Accordion("Start from an image", open=False) as self.start:
            brush, label = gr.Brush(colors=["#ffffff"], color_mode="fixed"), "Paint what to redraw, or all is redrawn"
            self.editor = gr.ImageEditor(label=label, brush=brush, layers=False, sources=("upload",), transforms=())
            self._add("prompt_strength")
        with gr.Accordion("More", open=False):
            self._add(*(name for name in FIELDS if name not in ("aesthetic_embedding", "image", "mask")))

    def _action(self, label: str) -> gr.Button:
        with gr.Row():
            button = gr.Button(label, variant="primary", scale=3, min_width=160)
            self.cancels.append(gr.Button("Cancel", min_width=80))
        return button

    def _add(self, *names: str) -> None:
        """Place the fields that the page does not have yet."""
        self.fields |= {name: component(name, self.opening.get(name)) for name in names if name not in self.fields}

    def _connect(self) -> None:
        inputs = [self.chosen, self.editor, *self.fields.values(), self.beside]
        clicks = [self.draw_button.click, self.try_button.click, self.fields["prompt"].submit]
        check, outputs = lambda *raw: self._check(raw, DRAW), [self.drawn, self.facts, self.recipe]
        draw = gr.on(clicks, self.draw, inputs, outputs, validator=check, show_progress_on=self.drawn, **TURN)
        self.try_button.click(lambda: gr.Tabs(selected="draw"), None, self.tabs, **QUICK)
        check, outputs = lambda *raw: self._check(raw, SWEEP), [*self.strips, self.curve, self.stops, self.steps]
        click = self.sweep_button.click
        sweep = click(self.sweep, inputs, outputs, validator=check, show_progress_on=self.strips, **TURN)
        outputs = [self.report, self.download, self.try_button, self.own, self.choice, self.chosen]
        make = self.make_button.click(self.make, [self.files, self.name, self.own], outputs, **TURN)
        gr.on([button.click for button in self.cancels], None, cancels=[draw, sweep, make])
        self.choice.select(self.choose, self.own, self.chosen, **QUICK)
        self.steps.change(_nearest, [self.steps, self.stops], self.strips, **QUICK)
        self.again.click(_reuse, self.drawn, [self.editor, self.start], preprocess=False, **QUICK)

    def _choice(self, own: list[Made]) -> list[tuple[str, str]]:
        named = [(thumbnail(self.service.registry.folder, name), name) for name in self.names]
        return named + [(str(made.thumbnail), made.name) for made in own]

    def choose(self, own: list[Made], event: gr.SelectData) -> dict[str, Any]:
        """The input for the image that was clicked."""
        if event.index < len(self.names):
            return {"aesthetic_embedding": self.names[event.index]}
        return {"aesthetic_embedding_file": own[event.index - len(self.names)].file}

    def _request(self, blob: Callable[..., Any], inputs: Any, folder: Path, **own: Any) -> Request:
        aesthetic, editor, *raw = inputs
        sent = blob(editor["id"], None) if editor and editor["id"] else None
        return request(dict(zip(self.fields, raw, strict=False)), aesthetic, sent, folder, **own)

    def _check(self, inputs: Any, own: dict[str, Any]) -> list[Any]:
        """For each input, whether it can be drawn: the message appears beside it."""
        places, message, place = ["aesthetic_embedding", "image", *self.fields, "beside"], "", None
        with tempfile.TemporaryDirectory() as folder:
            try:
                self.refuse(self._request(self.editor.blob_storage.get, inputs, Path(folder), **own))
            except AestheticError as error:
                message, named = str(error), culprit(str(error))
                place = "image" if named == "mask" else named if named in places[1:] else "prompt"
        return [gr.validate(name != place, message) for name in places]

    async def _turn(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return await self.predictions.make_async(function, *arguments)
        except AestheticError as error:
            raise gr.Error(html.escape(str(error)), print_exception=False) from error

    def _draw(self, inputs: Any, own: dict[str, Any], beside: str = "") -> list[tuple[list[Path], Result]]:
        """The files and facts of a request, and of another aesthetic beside it, until the next drawing."""
        rmtree(self.folder, ignore_errors=True)
        self.folder = Path(tempfile.mkdtemp())
        first = self._request(self.editor.blob_storage.pop, inputs, self.folder, **own).seeded()
        second = replace(first, **dict.fromkeys(SOURCES) | {"aesthetic_embedding": beside}) if beside else None
        folders = (Path(tempfile.mkdtemp(dir=self.folder)) for _ in range(2))
        return [self.service.predict(one, next(folders)) for one in (first, second) if one]

    async def draw(self, progress: Any = gr.Progress(track_tqdm=True), *inputs: Any) -> Any:  # noqa: B008
        """Images, how they were drawn, and their recipes."""
        [(paths, result)] = await self._turn(self._draw, inputs, DRAW)
        facts = f"{result.request.prompt}, {steps_label(result.steps)}, {sum(result.seconds.values()):.1f} s"
        recipes = [asdict(recipe) for _, recipe in result.images]
        return gr.Gallery(_labeled(paths, result, "seed"), selected_index=0), facts, recipes

    async def sweep(self, progress: Any = gr.Progress(track_tqdm=True), *inputs: Any) -> Any:  # noqa: B008
        """One strip or two, their curves, and the stops and range of the slider."""
        drawn = await self._turn(self._draw, inputs, SWEEP, inputs[-1])
        strips, curves = [], {}
        for paths, result in drawn:
            name = result.images[-1][1].aesthetic.get("name", "")
            curves[name] = result.stops
            labeled = _labeled(paths, result, "aesthetic_steps")
            strips.append(gr.Gallery(labeled, label=name, visible=True, selected_index=0))
        stops = drawn[0][1].stops
        slider = gr.Slider(maximum=stops[-1][0], value=0)
        return *[*strips, gr.Gallery(visible=False)][:2], _curve(curves), stops, slider

    async def make(self, files: Any, name: str, own: Any, progress: Any = gr.Progress(track_tqdm=True)) -> Any:  # noqa: B008
        """What was read, the file, and the aesthetic as the one that is chosen."""
        made = await self._turn(make, self.service.model, [Path(file["path"]) for file in files or []], name)
        own = [*own, made]
        choice = gr.Gallery(self._choice(own), selected_index=len(self.names) + len(own) - 1)
        file = gr.DownloadButton(value=str(made.file), interactive=True)
        return made.report, file, gr.Button(interactive=True), own, choice, {"aesthetic_embedding_file": made.file}


def _labeled(paths: list[Path], result: Result, setting: str) -> list[tuple[str, str]]:
    values = [recipe.request[setting] for _, recipe in result.images]  # a sheet, the last path, has none
    return [(str(path), f"{setting.split('_')[-1]} {value}") for path, value in zip(paths, values, strict=False)]


def _curve(curves: dict[str, Any]) -> pd.DataFrame:
    rows = [
        (stop[0], value, f"{name}: {what}")
        for name, stops in curves.items()
        for stop in stops
        for what, value in zip(("similarity", "drift"), stop[1:], strict=True)
    ]
    return pd.DataFrame(rows, columns=["steps", "value", "what"])


def _nearest(steps: int, stops: Any) -> list[gr.Gallery]:
    index = min(range(len(stops)), key=lambda i: abs(stops[i][0] - steps))
    return [gr.Gallery(selected_index=index)] * 2


def _reuse(drawn: Any) -> tuple[Any, gr.Accordion]:
    image = {"background": drawn[0]["image"]["path"], "layers": [], "composite": None} if drawn else None
    return image, gr.Accordion(open=True)
