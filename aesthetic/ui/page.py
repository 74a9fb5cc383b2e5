"""The page: what is where, and what its buttons do."""

import html
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from shutil import rmtree
from typing import Any

import gradio as gr
import pandas as pd

from ..cancellation import Predictions
from ..errors import AestheticError, RequestError
from ..images.user_images import UPLOAD, UserImage, read_images
from ..pipeline.make_aesthetic import average
from ..request import FIELDS, Request
from ..service import Result, Service
from . import form
from .examples import STOPS, STRIP, thumbnail

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
Own = list[tuple[str, str, Path]]  # thumbnail, name and file of each aesthetic that was made in this tab


class Page:
    """One page for everybody: what differs between browser tabs is in its components."""

    def __init__(self, service: Service, check: Callable[[Request], None], opening: Mapping[str, Any]) -> None:
        self.service, self.refuse, self.predictions = service, check, Predictions()
        self.names = service.registry.present(service.model.clip_space or "")
        self.opening = {"aesthetic_sweep": ",".join(str(stop[0]) for stop in STOPS), **opening}
        self.fields: dict[str, Any] = {}
        self.cancels: list[gr.Button] = []
        self.folder = Path(tempfile.mkdtemp())
        with gr.Blocks(title="Aesthetic gradients", analytics_enabled=False, delete_cache=(3600, 86400)) as self.blocks:
            self._place()
            self._connect()

    def _place(self) -> None:
        gr.Markdown("# Aesthetic gradients\nSay what to draw, choose an aesthetic, and press Draw.")
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
        self.again = gr.Button("Start from this image")
        with gr.Accordion("Recipe: what draws it again", open=False):
            self.recipe = gr.JSON(show_label=False)

    def _place_sweep(self) -> None:
        self.sweep_button, self.stops = self._action("Draw the strip"), gr.State(STOPS)
        self.steps = gr.Slider(0, STOPS[-1][0], 5, step=1, label="Drag: steps towards the aesthetic")
        self.strip = gr.Gallery(STRIP, label="A cat, towards the aesthetic night", height=420, **LOOK)
        self.curve = gr.LinePlot(_curve(STOPS), x="steps", y="value", color="what", y_title=" ", height=200)
        self._add("aesthetic_sweep")

    def _place_own(self) -> None:
        self.files = gr.File(
            elem_id="likes", label="Images that you like, or one zip or tar of them", file_count="multiple", height=160
        )
        self.name = gr.Textbox("mine", label="Name of the aesthetic", max_length=60)
        self.make_button = self._action("Make the aesthetic")
        self.report = gr.Textbox(label="What was read", lines=4, interactive=False)
        self.try_button = gr.Button("Draw the prompt with it", interactive=False)
        self.download = gr.DownloadButton("Download it (.safetensors)", interactive=False)

    def _place_settings(self) -> None:
        first = self.opening.get("aesthetic_embedding") or next(iter(self.names), None)
        self.chosen, self.own = gr.State({"aesthetic_embedding": first}), gr.State([])
        look: dict[str, Any] = {
            "columns": 3,
            "height": 340,
            "allow_preview": False,
            "interactive": False,
            "buttons": [],
        }
        selected = self.names.index(first) if first in self.names else None
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
        self.fields |= {name: form.component(name, self.opening.get(name)) for name in names if name not in self.fields}

    def _connect(self) -> None:
        inputs = [self.chosen, self.editor, *self.fields.values()]
        clicks = [self.draw_button.click, self.try_button.click, self.fields["prompt"].submit]
        check, outputs = (lambda *raw: self._check(raw, DRAW)), [self.drawn, self.recipe]
        draw = gr.on(clicks, self.draw, inputs, outputs, validator=check, show_progress_on=self.drawn, **TURN)
        self.try_button.click(lambda: gr.Tabs(selected="draw"), None, self.tabs, **QUICK)
        check, outputs = (lambda *raw: self._check(raw, SWEEP)), [self.strip, self.curve, self.stops, self.steps]
        click = self.sweep_button.click
        sweep = click(self.sweep, inputs, outputs, validator=check, show_progress_on=self.strip, **TURN)
        outputs = [self.report, self.download, self.try_button, self.own, self.choice, self.chosen]
        make = self.make_button.click(self.make, [self.files, self.name, self.own], outputs, **TURN)
        gr.on([button.click for button in self.cancels], None, cancels=[draw, sweep, make])
        self.choice.select(self.choose, self.own, self.chosen, **QUICK)
        self.steps.change(_nearest, [self.steps, self.stops], self.strip, **QUICK)
        self.again.click(_reuse, self.drawn, [self.editor, self.start], preprocess=False, **QUICK)

    def _choice(self, own: Own) -> list[tuple[str, str]]:
        named = [(thumbnail(self.service.registry.folder, name), name) for name in self.names]
        return named + [(image, name) for image, name, _ in own]

    def choose(self, own: Own, event: gr.SelectData) -> dict[str, Any]:
        """The input for the image that was clicked."""
        if event.index < len(self.names):
            return {"aesthetic_embedding": self.names[event.index]}
        return {"aesthetic_embedding_file": own[event.index - len(self.names)][2]}

    def _request(self, inputs: Any, own: dict[str, Any]) -> Request:
        aesthetic, editor, *raw = inputs
        return form.request(dict(zip(self.fields, raw, strict=True)), aesthetic, editor, **own)

    def _check(self, inputs: Any, own: dict[str, Any]) -> list[Any]:
        """For each input, whether it can be drawn. The message is put on it, and on the prompt if it may be folded."""
        places, message, wrong = ["aesthetic_embedding", "image", *self.fields], "", set[str | None]()
        try:
            self.refuse(self._request(inputs, own))
        except AestheticError as error:
            message, place = str(error), form.culprit(str(error))
            place = "image" if place == "mask" else place
            wrong = {place} if place in ("prompt", "aesthetic_steps") else {place, "prompt"}
        return [gr.validate(name not in wrong, message) for name in places]

    async def _turn(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return await self.predictions.make_async(function, *arguments)
        except AestheticError as error:
            raise gr.Error(html.escape(str(error)), print_exception=False) from error

    def _draw(self, inputs: Any, own: dict[str, Any]) -> tuple[list[Path], Result]:
        """The images, in files that are there until the next drawing."""
        rmtree(self.folder, ignore_errors=True)
        self.folder = Path(tempfile.mkdtemp())
        return self.service.predict(self._request(inputs, own), self.folder)

    async def draw(self, progress: Any = gr.Progress(track_tqdm=True), *inputs: Any) -> Any:  # noqa: B008
        """Images and their recipes."""
        paths, result = await self._turn(self._draw, inputs, DRAW)
        recipes = [asdict(recipe) for _, recipe in result.images]
        return gr.Gallery(_labeled(paths, result, "seed"), selected_index=0), recipes

    async def sweep(self, progress: Any = gr.Progress(track_tqdm=True), *inputs: Any) -> Any:  # noqa: B008
        """The strip, its curve, and the stops and the range of the slider."""
        paths, result = await self._turn(self._draw, inputs, SWEEP)
        label = f"{result.request.prompt}, towards {result.images[-1][1].aesthetic.get('name', 'nothing')}"
        strip = gr.Gallery(_labeled(paths, result, "aesthetic_steps"), selected_index=0, label=label)
        return strip, _curve(result.stops), result.stops, gr.Slider(maximum=result.stops[-1][0], value=0)

    async def make(
        self,
        files: Any,
        name: Any,
        own: Own,
        progress: Any = gr.Progress(track_tqdm=True),  # noqa: B008
    ) -> Any:
        """What was read, the file, and the aesthetic as the one that is chosen."""
        report, made = await self._turn(self._make, [Path(file["path"]) for file in files or []], str(name))
        own, file = [*own, made], made[2]
        choice = gr.Gallery(self._choice(own), selected_index=len(self.names) + len(own) - 1)
        download = gr.DownloadButton(value=str(file), interactive=True)
        return report, download, gr.Button(interactive=True), own, choice, {"aesthetic_embedding_file": file}

    def _make(self, paths: Sequence[Path], name: str) -> tuple[str, tuple[str, str, Path]]:
        """What was read, and the aesthetic of images or of one archive, which share the limits of one upload."""
        model, name, folder = self.service.model, re.sub(r"[^\w -]", "", name)[:60].strip(), Path(tempfile.mkdtemp())
        if not paths:
            raise RequestError("drop images first, or one zip or tar of them")
        if model.vision is None:
            raise RequestError(f"the model {model.snapshot.name} has no vision tower to look at images with")
        file, read, left_out = folder / f"{name or 'mine'}.safetensors", list[str](), list[str]()

        def images() -> Iterator[UserImage]:
            source = paths[0] if len(paths) == 1 else _linked(paths)
            for image in read_images(source, UPLOAD, skip_unreadable=True, on_left_out=left_out.append):
                if not read:
                    image.image.resize((112, 112)).save(folder / "thumbnail.webp")
                read.append(image.name)
                yield image

        made, mean = average(model.vision, images(), model.snapshot.name)
        replace(made, vector=mean).save(file)
        report = [f"Read {len(read)}: {', '.join(read)}", *(f"Left out: {reason}" for reason in left_out)]
        return "\n".join(report), (str(folder / "thumbnail.webp"), file.stem, file)


def _linked(paths: Sequence[Path]) -> Path:
    """One folder with all of the files."""
    folder = Path(tempfile.mkdtemp())
    for i, path in enumerate(paths):
        (folder / (f"{i} {path.name}" if (folder / path.name).exists() else path.name)).hardlink_to(path)
    return folder


def _labeled(paths: list[Path], result: Result, setting: str) -> list[tuple[str, str]]:
    values = [recipe.request[setting] for _, recipe in result.images]  # a sheet, the last path, has none
    label = setting.removeprefix("aesthetic_")
    return [(str(path), f"{label} {value}") for path, value in zip(paths, values, strict=False)]


def _curve(stops: Any) -> pd.DataFrame:
    rows = [
        (steps, value, what) for steps, *two in stops for what, value in zip(("similarity", "drift"), two, strict=True)
    ]
    return pd.DataFrame(rows, columns=["steps", "value", "what"])


def _nearest(steps: int, stops: Any) -> gr.Gallery:
    return gr.Gallery(selected_index=min(range(len(stops)), key=lambda i: abs(stops[i][0] - steps)))


def _reuse(drawn: Any) -> tuple[Any, gr.Accordion]:
    image = {"background": drawn[0]["image"]["path"], "layers": [], "composite": None} if drawn else None
    return image, gr.Accordion(open=True)
