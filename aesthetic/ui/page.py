"""The page: what is where, what its buttons do, and its server, with nothing from or to the network."""

import asyncio
import html
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd

from ..cancellation import Predictions
from ..embeddings.registry import Registry
from ..errors import AestheticError, RequestError, printable
from ..images.user_images import UPLOAD, UserImage, read_images
from ..pipeline.make_aesthetic import average
from ..pipeline.target import require_vision
from ..request import FIELDS, SOURCES, Request
from ..service import Result, Service
from . import form

__all__ = ["HERE", "OPENING", "STRIP", "Page", "launched", "nearest", "reuse", "thumbnail"]

HERE = Path(__file__).parent
OPENING = {"prompt": "a cat", "aesthetic_embedding": "night", "aesthetic_steps": 5, "seed": 5}  # with the demo
OPENING |= {"num_inference_steps": 20, "scheduler": "DPMSolverMultistep"}
STOPS = pd.read_csv(HERE / "opening" / "stops.csv")  # of the strip, as below
STRIP = [(str(HERE / "opening" / f"{steps}.webp"), f"{steps} steps towards night") for steps in STOPS["steps"]]
DRAW: dict[str, Any] = {"aesthetic_sweep": None}
SWEEP: dict[str, Any] = {"num_outputs": 1, "aesthetic_until": None}
TURN: dict[str, Any] = {"concurrency_id": "turn", "concurrency_limit": 1, "preprocess": False}
QUICK: dict[str, Any] = {"queue": False, "show_progress": "hidden"}
IMAGES: dict[str, Any] = {"preview": True, "interactive": False, "height": 440, "buttons": ["download", "fullscreen"]}
CURVE = {"x": "steps", "y": "value", "color": "variable", "color_title": " ", "y_title": " ", "height": 220}
CSS = ".preview {background: var(--background-fill-primary)}"  # over the other images of a gallery
OPTIONS: dict[str, Any] = {"share": False, "ssr_mode": False, "mcp_server": False, "run_history": False, "quiet": True}
OPTIONS |= {"prevent_thread_lock": True, "max_file_size": int(UPLOAD.total_bytes), "footer_links": [], "css": CSS}


@contextmanager
def launched(
    service: Service, check: Callable[[Request], object], opening: Mapping[str, Any], **place: Any
) -> Iterator[str]:
    """The address of the page, which is served until the end; then all of its files are removed.

    check:   raises AestheticError for a request that can't be drawn, before it waits for its turn.
    opening: what the form holds at first, where that is not a field's default.
    place:   server_name and server_port, as gradio calls them.
    """
    with tempfile.TemporaryDirectory(prefix="aesthetic-") as folder:
        tempfile.tempdir = folder  # gradio copies to {folder}/gradio what lies outside of that
        gr.set_static_paths([HERE / "opening", HERE / "thumbnails", service.registry.folder / "thumbnails"])
        blocks = Page(service, check, opening).blocks
        try:
            yield blocks.launch(**OPTIONS, **place)[1]
        finally:
            blocks.close(verbose=False)
            tempfile.tempdir = None


class Page:
    """One page for everybody: what differs between browser tabs is in its components."""

    def __init__(self, service: Service, check: Callable[[Request], object], opening: Mapping[str, Any]) -> None:
        self.service, self.predictions = service, Predictions()
        self.opening = {"aesthetic_sweep": ",".join(map(str, STOPS["steps"])), **opening}
        self.names = service.registry.present(service.model.clip_space or "")
        self.names.sort(key=lambda name: name != opening.get("aesthetic_embedding"))  # the chosen one comes first
        self.folders = [Path(tempfile.mkdtemp()) for _ in range(2)]  # of the last drawing, which gradio copies
        self.fields, self.turns = dict[str, Any](), dict[Any, Any]()
        with gr.Blocks(title="Aesthetic gradients", analytics_enabled=False, delete_cache=(3600, 86400)) as self.blocks:
            gr.Markdown("# Aesthetic gradients\nSay what to draw, choose an aesthetic, and press Draw.")
            with gr.Row():
                self._add("prompt")
                self.cancel = gr.Button("Cancel", size="sm", scale=0, min_width=80)
            with gr.Row():
                with gr.Column(scale=3), gr.Tabs() as self.tabs:
                    self._place_draw()
                    self._place_sweep()
                    self._place_own()
                with gr.Column(scale=2):
                    self._place_settings()
            self._connect(check)

    def _place_draw(self) -> None:
        with gr.Tab("Draw", id="draw"):
            self.draw_button = gr.Button("Draw", variant="primary")
            self.drawn = gr.Gallery(STRIP, label="Images", selected_index=4, **IMAGES)
            self.again = gr.Button("Start from this image")
            with gr.Accordion("Recipe: what draws it again", open=False):
                self.recipe = gr.JSON(show_label=False)

    def _place_sweep(self) -> None:
        with gr.Tab("How far"):
            self.sweep_button = gr.Button("Draw the strip", variant="primary")
            self.steps = gr.Slider(0, 20, 5, step=1, label="Drag: steps towards the aesthetic")
            with gr.Row():
                self.strips = [gr.Gallery(STRIP, label="Strip", selected_index=4, **IMAGES)]
                self.strips += [gr.Gallery(label="Strip beside it", visible=False, **IMAGES)]
            with gr.Row():
                self.curves = [gr.LinePlot(STOPS.melt("steps"), **CURVE), gr.LinePlot(visible=False, **CURVE)]
            self.other = gr.Dropdown(["", *self.names], label="Another aesthetic, to see beside it", elem_id="other")
            self._add("aesthetic_sweep")

    def _place_own(self) -> None:
        with gr.Tab("Your own aesthetic"):
            self.files = gr.File(label="Images you like, or one zip or tar", file_count="multiple", elem_id="likes")
            self.name = gr.Textbox("mine", label="Name of the aesthetic", max_length=60)
            self.make_button = gr.Button("Make the aesthetic", variant="primary")
            self.report = gr.Textbox(label="What was read", lines=4, interactive=False)
            self.try_button = gr.Button("Draw the prompt with it", interactive=False)
            self.download = gr.DownloadButton("Download it (.safetensors): a reload forgets it", interactive=False)

    def _place_settings(self) -> None:
        choices = [(thumbnail(self.service.registry, name), name, {"aesthetic_embedding": name}) for name in self.names]
        self.choices, self.choice = gr.State(choices), _shown(choices)
        self.fields["aesthetic_embedding"] = gr.State(choices[0][2] if choices else {})
        self._add("aesthetic_steps", "seed")
        with gr.Accordion("Start from an image", open=False) as self.start:
            look = {"label": "Paint what to redraw, or all is redrawn", "brush": gr.Brush(colors=["#fff"])}
            self.fields["image"] = gr.ImageEditor(layers=False, sources=("upload",), transforms=(), **look)
            self._add("prompt_strength")
        with gr.Accordion("More", open=False):
            self._add(*(name for name in FIELDS if name not in (*self.fields, "mask")))

    def _add(self, *names: str) -> None:
        self.fields |= {name: form.component(name, self.opening.get(name)) for name in names}

    def _connect(self, check: Callable[[Request], object]) -> None:
        chosen, made = self.fields["aesthetic_embedding"], [self.report, self.download, self.try_button]
        newest = lambda choices: (choices[0][2], gr.Gallery(selected_index=0), gr.Tabs(selected="draw"))  # noqa: E731
        tried = self.try_button.click(newest, self.choices, [chosen, self.choice, self.tabs], **QUICK)
        clicks = [self.draw_button.click, tried.then, self.fields["prompt"].submit]
        outputs = [self.drawn, self.recipe]
        draw = self._on(clicks, self.fields, outputs, self.draw, lambda raw: check(form.request(raw, **DRAW)))
        clicks, inputs = [self.sweep_button.click], self.fields | {"other": self.other}
        outputs = [*self.strips, *self.curves, self.steps]
        sweep = self._on(clicks, inputs, outputs, self.sweep, lambda raw: check(form.request(raw, **SWEEP)))
        clicks, inputs = [self.make_button.click], {"files": self.files, "name": self.name, "choices": self.choices}
        outputs = [*made, self.choices, self.choice, chosen]
        make = self._on(clicks, inputs, outputs, self.make, lambda raw: next(_images(raw["files"])))
        self.cancel.click(lambda: gr.Info("Canceled"), cancels=[*draw, *sweep, *make])
        self.blocks.unload(self._leave)
        self.files.change(lambda: ["", *[gr.Button(interactive=False)] * 2], None, made, **QUICK)
        self.choice.select(_chosen, self.choices, chosen, **QUICK)
        self.steps.change(nearest, [self.steps, *self.strips], self.strips, preprocess=False, **QUICK)
        self.again.click(reuse, self.drawn, [self.fields["image"], self.start], preprocess=False, **QUICK)

    def _on(self, clicks: list[Any], inputs: Mapping[str, Any], outputs: list[Any], work: Any, check: Any) -> list[Any]:
        """Do `work` in its turn, once `check` raises nothing. Both get what the browser sent of `inputs`, by name."""

        def validate(*raw: Any) -> list[Any]:
            wrong, message = set[str | None](), ""
            try:
                check(dict(zip(inputs, raw, strict=True)))
            except AestheticError as error:  # is said on its field, which may be folded away, and on the first
                wrong, message = {form.culprit(str(error)), next(iter(inputs))}, str(error)
            return [gr.validate(name not in wrong, message) for name in inputs]

        async def turn(tab: gr.Request, progress: Any = gr.Progress(track_tqdm=True), *raw: Any) -> Any:  # noqa: B008
            self.turns[tab.session_hash] = asyncio.current_task()
            try:
                return await self.predictions.make_async(work, dict(zip(inputs, raw, strict=True)))
            except AestheticError as error:
                raise gr.Error(html.escape(str(error)), print_exception=False) from error

        shown: dict[str, Any] = {"validator": validate, "show_progress_on": outputs[0], **TURN}
        return [on(turn, [*inputs.values()], outputs, **shown) for on in clicks]

    async def _leave(self, tab: gr.Request) -> None:
        """Cancel what a closed tab was drawing."""
        if task := self.turns.pop(tab.session_hash, None):
            task.cancel()

    def draw(self, raw: Mapping[str, Any]) -> Any:
        """Images and their recipes."""
        paths, result = self.service.predict(form.request(raw, **DRAW), self.folders[0])
        return gr.Gallery(_captioned(paths, result), selected_index=0), [asdict(recipe) for _, recipe in result.images]

    def sweep(self, raw: Mapping[str, Any]) -> Any:
        """One strip or two, their curves, and the range of the slider."""
        request = form.request(raw, **SWEEP).seeded()
        other = dict.fromkeys(SOURCES) | {"aesthetic_embedding": raw["other"], "seed": request.seed}
        requests = [request, form.request(raw, **SWEEP | other)] if raw["other"] else [request]
        strips, curves = [gr.Gallery(visible=False)] * 2, [gr.LinePlot(visible=False)] * 2
        for i, request in enumerate(requests):
            paths, result = self.service.predict(request, self.folders[i])
            strips[i] = gr.Gallery(_captioned(paths, result), selected_index=0, visible=True)
            stops = pd.DataFrame(result.stops, columns=STOPS.columns, dtype=float)
            curves[i] = gr.LinePlot(stops.melt("steps"), visible=True)
        return *strips, *curves, gr.Slider(maximum=request.sweep[-1], value=0)

    def make(self, raw: Mapping[str, Any]) -> Any:
        """What was read, the file, and the aesthetic as the first in the gallery and the one that is chosen."""
        model, read, left_out = self.service.model, list[UserImage](), list[str]()

        def images() -> Iterator[UserImage]:
            for image in _images(raw["files"], lambda reason: left_out.append(f"Left out: {reason}")):
                read.append(replace(image, image=image.image.resize((112, 112))))
                yield image

        made, mean = average(require_vision(model), images(), model.snapshot.name)
        name = Path(printable(str(raw["name"]))).name[:40].strip(" .") or "mine"  # 160 bytes at most
        file = Path(tempfile.mkdtemp()) / f"{name}.safetensors"
        replace(made, vector=mean).save(file)
        others = [choice for choice in raw["choices"] if choice[1] != name or "aesthetic_embedding" in choice[2]]
        choices = [(read[0].image, name, {"aesthetic_embedding_file": file}), *others]
        report = "\n".join([f"Read {len(read)}: {', '.join(image.name for image in read)}", *left_out])
        download, button = gr.DownloadButton(value=str(file), interactive=True), gr.Button(interactive=True)
        return report, download, button, choices, _shown(choices), choices[0][2]


def thumbnail(registry: Registry, name: str) -> str:
    """What shows an aesthetic: as `embeddings --preview` kept it beside the index, or one of the demo's."""
    places = [path / "thumbnails" / f"{name}.webp" for path in (registry.folder, HERE)]
    return str(next((path for path in places if path.is_file()), HERE / "thumbnails" / "unknown.webp"))


def _images(files: Any, on_left_out: Callable[[str], object] = lambda _: None) -> Iterator[UserImage]:
    """Those of several files or of one archive, which share the limits of one upload."""
    paths = [Path(file["path"]) for file in files or []]
    if not paths:
        raise RequestError("drop images first, or one zip or tar of them")
    folder = Path(tempfile.mkdtemp())
    for i, path in enumerate(paths):
        (folder / (f"{i} {path.name}" if (folder / path.name).exists() else path.name)).symlink_to(path)
    source, label = (folder, "the upload") if len(paths) > 1 else (paths[0], None)
    return read_images(source, UPLOAD, label=label, skip_unreadable=True, on_left_out=on_left_out)


def _shown(choices: Any) -> gr.Gallery:
    look: dict[str, Any] = {"allow_preview": False, "height": 340, "columns": 3, "buttons": [], "interactive": False}
    return gr.Gallery([choice[:2] for choice in choices], label="Aesthetic", selected_index=0, **look)


def _captioned(paths: list[Path], result: Result) -> list[tuple[Path, str]]:
    """Images for a gallery; the last path of a sweep is that of its sheet, which is left out."""
    recipes = [recipe for _, recipe in result.images]
    name = Path(result.request.aesthetic_embedding_file or recipes[-1].aesthetic.get("name", "nothing")).stem
    captions = [f"{one.request['aesthetic_steps']} steps towards {name}, seed {one.request['seed']}" for one in recipes]
    return list(zip(paths, captions, strict=False))


def _chosen(choices: Any, event: gr.SelectData) -> Any:
    return choices[event.index][2]


def nearest(steps: int, *strips: Any) -> list[Any]:
    """Each strip at its image that is the nearest to so many steps, which its caption starts with."""
    far = [[abs(int(image["caption"].split()[0]) - steps) for image in strip or []] for strip in strips]
    return [gr.Gallery(selected_index=one.index(min(one))) if one else gr.skip() for one in far]


def reuse(drawn: gr.Gallery) -> tuple[Any, gr.Accordion]:
    """The image that is looked at, for the editor, which is unfolded."""
    image = drawn.value[drawn.selected_index or 0]["image"]["path"] if drawn.value else None
    return image and {"background": image, "layers": [], "composite": None}, gr.Accordion(open=True)
