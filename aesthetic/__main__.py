"""The command line: python -m aesthetic txt2img, sweep, evaluate, embed, convert, embeddings, recipe, bench and warm.

txt2img takes the flags of the original code's scripts/txt2img.py and names its files alike. What is imported here
at the top answers --help and bad values at once; torch and the models come in with the command that needs them.
"""

import argparse
import datetime as dt
import importlib.util
import json
import logging
import os
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from .errors import AestheticError, DrawingError, RequestError
from .request import FORMATS, SCHEDULERS, Request

if TYPE_CHECKING:
    from .output import Recipe
    from .pipeline import Model
    from .registry import Registry
    from .service import Service

log = logging.getLogger(__name__)

IGNORED = ("C", "f", "config", "precision", "laion400m")  # the model's files say all this
STEERING = (
    "aesthetic_mix",
    "aesthetic_until",
    "aesthetic_weight",
    "aesthetic_slerp",
    "aesthetic_text",
    "aesthetic_text_angle",
    "aesthetic_text_negative",
)
PREVIEW = "0,2,5,10"
WRITING = ("output_format", "output_quality")
EVALUATED = (
    "negative_prompt",
    "aesthetic_lr",
    "width",
    "height",
    "num_inference_steps",
    "guidance_scale",
    "scheduler",
    "seed",
    "disable_safety_checker",
)
PROMPTS = Path(__file__).with_name("prompts.txt")
DEFAULTS = {spec.name: spec.default for spec in fields(Request)}


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit status: 0, or 1 after an error that was the user's to mend."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (AestheticError, OSError) as error:
        print(f"aesthetic: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def txt2img(options: argparse.Namespace) -> None:
    """Draw n_iter times n_samples pictures, or each prompt of a file n_iter times, and a grid of all of them."""
    if options.n_iter < 1 or options.n_rows < 0:
        raise RequestError(f"--n_iter must be 1 or more, --n_rows 0 or more, not {options.n_iter} and {options.n_rows}")
    for name in IGNORED:
        if getattr(options, name) is not None:
            log.warning("--%s is the original's and makes no difference here", name)
    requests = list(_requests(options))
    _check_aesthetic(requests[0], options.ckpt)
    from . import output

    service = _service(options.ckpt)
    samples = options.outdir / "samples"
    samples.mkdir(parents=True, exist_ok=True)
    drawn, images = 0, []
    for request in requests:
        try:
            pictures = service.draw(request).pictures
        except DrawingError as error:  # one prompt that gives nothing need not stop the others
            log.warning("%s", error)
            continue
        drawn += len(pictures)
        for image, recipe in pictures:
            if not options.skip_grid:
                images.append(image)
            if not options.skip_save:
                path = _next(samples, "", 5, options.output_format)
                output.write(path, image, recipe)
                print(path)
    if not drawn:
        raise DrawingError("there is no picture to show")
    if not options.skip_grid:
        path = _next(options.outdir, "grid-", 4)
        output.grid(images, options.n_rows or options.n_samples).save(path)
        print(path)


def sweep(options: argparse.Namespace) -> None:
    """One sheet of aesthetics × steps: a row for each aesthetic, a column for each number of steps, one noise."""
    stops = ",".join(map(str, options.steps))
    requests = [
        Request(
            prompt=options.prompt,
            **_aesthetic(name),
            aesthetic_sweep=stops,
            scheduler=options.scheduler,
            seed=options.seed,
            **_drawing(options),
        )
        for name in options.aesthetics
    ]
    _require_writable(options.output, ".png")
    for request in requests:
        _check_aesthetic(request, options.ckpt)
    _draw_sheet(_service(options.ckpt), requests, [Path(name).stem for name in options.aesthetics], options.output)


def evaluate(options: argparse.Namespace) -> None:
    """Draw prompts × aesthetics × steps × seeds, let CLIP look at each picture, and report what the steps do."""
    if importlib.util.find_spec("matplotlib") is None:
        raise RequestError("the plots need matplotlib: python -m pip install -r requirements-evaluate.txt")
    prompts = _lines("--prompts", options.prompts, comment="#")
    aesthetics = None
    if options.aesthetics is not None:
        aesthetics = {Path(name).stem: _aesthetic(name) for name in options.aesthetics}
        if len(aesthetics) < len(options.aesthetics):
            raise RequestError("--aesthetics names two of the same name: the report could not tell them apart")
    from . import evaluation

    drawing = {name: getattr(options, name) for name in EVALUATED}
    plan = evaluation.prepare(
        model=options.ckpt,
        prompts=prompts,
        aesthetics=aesthetics,
        steps=options.steps,
        seeds=options.seeds,
        drawing=drawing,
    )
    try:
        written = evaluation.run(plan, options.outdir)
    except KeyboardInterrupt:
        print(f"Stopped: the same command goes on from what is in {options.outdir}", file=sys.stderr)
        raise
    if written is not None:
        print(written)


def bench(options: argparse.Namespace) -> None:
    """Measure each stage and the whole of predictions beside plain diffusers with the original's loop."""
    if options.repeats < 1:
        raise RequestError(f"--repeats must be 1 or more, not {options.repeats}")
    _require_one_model(options)
    requests = [
        Request(
            seed=1,
            width=width,
            height=height,
            num_outputs=outputs,
            num_inference_steps=options.steps,
            aesthetic_steps=options.aesthetic_steps,
            scheduler=options.scheduler,
        )
        for width, height in options.sizes
        for outputs in options.outputs
    ]
    if options.json is not None:
        _require_writable(options.json, ".json")
    from . import bench, fast, pipeline

    device = pipeline.default_device()
    speeds = options.speeds or [fast.speed(device)]
    known = fast.SPEEDS if device.type == "cuda" else ("plain",)
    if not set(speeds) <= set(known) or len(set(speeds)) < len(speeds):
        raise RequestError(f"--speeds must be of {', '.join(known)} on this machine, each once, not {' '.join(speeds)}")
    if "compile" in speeds:
        fast.prepare(_model(options), requests)
    measured = bench.run(
        lambda speed: _at_speed(_model(options), speed), speeds, requests, repeats=options.repeats, say=print
    )
    if options.json is not None:
        options.json.write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")


def _service(model: str | None) -> "Service":
    from .service import Service

    return Service.load(model)


def warm(options: argparse.Namespace) -> None:
    """Compile what pictures of some sizes are drawn with, for the GPU that is here."""
    _require_one_model(options)
    from . import fast, pipeline

    requests = [
        Request(width=width, height=height, num_outputs=outputs)
        for width, height in options.sizes
        for outputs in options.outputs
    ]
    if pipeline.default_device().type != "cuda":
        raise RequestError("there is no CUDA GPU here to compile for")
    fast.prepare(_model(options), requests)
    print("AESTHETIC_SPEED=compile draws with it.")


def _require_one_model(options: argparse.Namespace) -> None:
    if options.random and options.ckpt:
        raise RequestError("give only one of --random and --ckpt: both name the model")


def _model(options: argparse.Namespace) -> "Model":
    """That of the options, or one with random weights, of which nothing is on the disk."""
    from . import pipeline, service, shapes

    device = pipeline.default_device()
    if options.random:
        return shapes.build(options.random, device)
    return pipeline.load(service.locate(options.ckpt), device)


def _at_speed(model: "Model", speed: str) -> "Service":
    from . import checkpoint, fast
    from .registry import Registry
    from .service import Service

    return Service(model, Registry(checkpoint.home() / "embeddings"), fast.choose(model, speed, fast.code(speed)))


def embed(options: argparse.Namespace) -> None:
    """Make an aesthetic from pictures and write it down, with where it came from."""
    _require_writable(options.output, ".safetensors")
    from . import embedding, images, pipeline, service, targets

    snapshot = service.locate(options.ckpt)
    vision = pipeline.load_vision(snapshot, pipeline.default_device())
    vector, sha256s = targets.encode_pictures(vision, options.pictures, images.LOCAL)
    notes = {
        "space": vision.space,
        "model": snapshot.name,
        "pictures": str(len(sha256s)),
        "pictures_sha256": embedding.digest_of(sha256s),
        "date": dt.datetime.now(tz=dt.UTC).date().isoformat(),
    }
    embedding.save(options.output, vector, notes)
    print(f"{options.output}: the mean of {len(sha256s)} pictures in the CLIP space {vision.space}")


def convert(options: argparse.Namespace) -> None:
    """Write an aesthetic in the other kind of file: as its direction, of length 1, with whatever notes it has."""
    _require_writable(options.output, ".pt", ".safetensors")
    from . import embedding

    aesthetic = embedding.read(options.aesthetic)
    embedding.save(options.output, aesthetic.vector, aesthetic.notes or {"converted_from_sha256": aesthetic.sha256})
    print(f"{options.output}: {aesthetic.dim} dimensions, from sha256 {aesthetic.sha256}")
    for name, note in aesthetic.notes.items():
        print(f"{_escaped(name):<24}{_escaped(note)}")
    if aesthetic.notes and options.output.suffix == ".pt":
        print("A .pt file can't hold these notes: they stay behind.")


def embeddings(options: argparse.Namespace) -> None:
    """The named aesthetics and the models that they fit, or a sheet of what those that are here do to one picture."""
    from . import checkpoint
    from .registry import Registry

    if options.preview is not None:
        _preview(options)
        return
    registry = Registry(checkpoint.home() / "embeddings")
    manifest = checkpoint.read_manifest(checkpoint.home() / "weights")
    for space in dict.fromkeys(entry.space for entry in registry.entries.values()):
        models = [name for name, source in manifest.items() if source.space == space]
        print(f"For {' and '.join([*models, 'any other model'])} of the CLIP space {space}:\n")
        for name in registry.names(space):
            entry = registry.entries[name]
            label = name + (" (default)" if entry.default else "")
            print(f"  {label:<24}{_state(registry, name):<16}{entry.made_of}")
        print()
    if any(_state(registry, name) == "not downloaded" for name in registry.names()):
        print("script/download-weights fetches what is not downloaded.")


def _state(registry: "Registry", name: str) -> str:
    if registry.path(name).is_file():
        return "here"
    return "missing" if registry.entries[name].url is None else "not downloaded"


def _preview(options: argparse.Namespace) -> None:
    _require_writable(options.preview, ".png", flag="--preview")
    service = _service(options.ckpt)
    registry, space = service.registry, service.model.space
    names = [name for name, entry in registry.entries.items() if entry.space == space and registry.path(name).is_file()]
    if not names:
        raise RequestError(f"no named aesthetic of the model's CLIP space {space} is here")
    requests = [
        Request(
            prompt="a castle",
            aesthetic_embedding=name,
            aesthetic_sweep=PREVIEW,
            num_inference_steps=options.num_inference_steps,
            scheduler="DPMSolverMultistep",
            seed=1,
        )
        for name in names
    ]
    _draw_sheet(service, requests, names, options.preview)


def _draw_sheet(service: "Service", requests: list[Request], labels: list[str], path: Path) -> None:
    """Draw sweeps, which have the same stops, and write them as the rows of one sheet."""
    from . import output

    stops, rows = requests[0].sweep, []
    for request in tqdm(requests, desc="Aesthetics"):
        shown = {}
        try:
            shown = {recipe.request["aesthetic_steps"]: image for image, recipe in service.draw(request).pictures}
        except DrawingError as error:  # one row that gives nothing need not cost the others
            log.warning("%s", error)
        rows.append([shown.get(steps) for steps in stops])
    output.contact_sheet(rows, columns=[output.steps_label(steps) for steps in stops], labels=labels).save(path)
    print(path)


def _require_writable(path: Path, *suffixes: str, flag: str = "-o") -> None:
    if path.suffix not in suffixes or path.is_dir() or not os.access(path.parent, os.W_OK):
        raise RequestError(
            f"{flag} must name a {' or '.join(suffixes)} file where one can be written, not {str(path)!r}"
        )


def recipe(options: argparse.Namespace) -> None:
    """What made a picture, and the command that makes it again."""
    from . import checkpoint, output

    found = output.read_recipe(options.picture)
    request = found.settings()
    settings = {name: value for name, value in asdict(request).items() if value is not None}
    facts = {f"{kind} {name}": text for kind in ("model", "aesthetic") for name, text in getattr(found, kind).items()}
    for name, value in {**settings, **facts, **found.versions}.items():
        print(f"{name:<24}{_escaped(str(value))}")
    print("\nTo draw it again:\n")
    manifest = checkpoint.read_manifest(checkpoint.home() / "weights")
    model = found.model["name"] if found.model["name"] in manifest else "MODEL"
    print(" ".join(map(_quoted, _command(found, request, model))))
    if model == "MODEL":
        print(f"\nMODEL is the folder or file of the model called {found.model['name']}.")
    for name, sha256 in found.files.items():
        print(f"\n{name.upper()} is the {name} with the sha256 {sha256}.")
    kinds = {"file": "the aesthetic", "pictures": "what 'python -m aesthetic embed' makes of the pictures"}
    kind = kinds.get(found.aesthetic.get("source", "name"))
    if kind is not None:
        print(f"\nFILE is {kind} with the sha256 {found.aesthetic['sha256']}.")


def _command(found: "Recipe", request: Request, model: str) -> list[str]:
    """The txt2img command line of a recipe. Files that are not ours to know have to be put in by hand."""
    flags: dict[str, object] = {
        "--ckpt": model,
        "--prompt": request.prompt,
        "--negative_prompt": request.negative_prompt,
        "--seed": request.seed,
        "--W": request.width,
        "--H": request.height,
        "--scheduler": request.scheduler,
        "--ddim_steps": request.num_inference_steps,
        "--ddim_eta": request.ddim_eta,
        "--scale": request.guidance_scale,
        "--aesthetic_steps": request.aesthetic_steps,
    }
    if found.aesthetic:
        flags["--aesthetic_lr"] = request.aesthetic_lr
        if request.aesthetic_mix is None:
            flags["--aesthetic_embedding"] = request.aesthetic_embedding or "FILE"
    flags |= {f"--{name}": name.upper() for name in found.files}
    for name, setting in (("image", "prompt_strength"), ("lora", "lora_scale")):
        if name in found.files:
            flags[f"--{setting}"] = getattr(request, setting)
    command = ["python", "-m", "aesthetic", "txt2img", "--n_samples", "1", "--n_iter", "1", "--skip_grid"]
    for name in (*STEERING, *WRITING, "long_prompt", "disable_safety_checker"):
        value = getattr(request, name)
        if value is True:
            command.append(f"--{name}")
        elif value != DEFAULTS[name]:
            flags[f"--{name}"] = value
    return command + [f"{flag}={value}" for flag, value in flags.items()]


def _escaped(text: str) -> str:
    """`text`, which is anybody's, with nothing in it that could pass for a line of ours or act on a terminal."""
    return "".join(letter if letter.isprintable() else f"\\U{ord(letter):08x}" for letter in text)


def _quoted(word: str) -> str:
    """`word` for bash or zsh, which turn an escaped letter between $'' back into itself."""
    if word.isprintable():
        return shlex.quote(word)
    return "$'" + _escaped(word.replace("\\", r"\\").replace("'", r"\'")) + "'"


def _requests(options: argparse.Namespace) -> Iterator[Request]:
    """One request for each prompt in each iteration; every picture of the run has a seed of its own.

    As in the original, a prompt from a file gives one picture in each iteration, whatever n_samples is. With
    --fixed_code all of them start from the same noise.
    """
    scheduler = options.scheduler or ("PNDM" if options.plms else "DDIM")
    seed, count = options.seed, options.n_samples if options.from_file is None else 1
    for _ in range(options.n_iter):
        for prompt in _prompts(options):
            yield Request(
                prompt=prompt,
                **_aesthetic(options.aesthetic_embedding),
                aesthetic_steps=options.aesthetic_steps,
                num_outputs=count,
                scheduler=scheduler,
                seed=seed,
                ddim_eta=options.ddim_eta,
                **{name: getattr(options, name) for name in (*STEERING, *WRITING)},
                **_drawing(options),
            )
            if not options.fixed_code:
                seed += count


def _drawing(options: argparse.Namespace) -> dict[str, Any]:
    """What the flags of `_add_drawing` say that goes into every request alike."""
    return {
        "negative_prompt": options.negative_prompt,
        "long_prompt": options.long_prompt,
        "aesthetic_lr": options.aesthetic_lr,
        "image": options.image,
        "mask": options.mask,
        "prompt_strength": options.prompt_strength,
        "lora": options.lora,
        "lora_scale": options.lora_scale,
        "width": options.W,
        "height": options.H,
        "num_inference_steps": options.ddim_steps,
        "guidance_scale": options.scale,
        "disable_safety_checker": options.disable_safety_checker,
    }


def _prompts(options: argparse.Namespace) -> list[str]:
    if options.from_file is None:
        return [options.prompt]
    return _lines("--from-file", options.from_file)


def _lines(flag: str, path: Path, comment: str | None = None) -> list[str]:
    """The prompts in a file, one a line, but for lines that begin with `comment`."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{flag} {path} can't be read: {error}") from error
    prompts = [line for line in lines if line.strip() and not (comment and line.startswith(comment))]
    if not prompts:
        raise RequestError(f"{flag} {path} holds no prompt: one a line was expected")
    return prompts


def _aesthetic(path_or_name: str | None) -> dict[str, Any]:
    """A path if it looks like one (a folder in it, a suffix after it), else a name."""
    if path_or_name is None:
        return {}
    path = Path(path_or_name)
    is_path = path.suffix in (".pt", ".safetensors") or len(path.parts) > 1
    return {"aesthetic_embedding_file": path} if is_path else {"aesthetic_embedding": path_or_name}


def _check_aesthetic(request: Request, model: str | None) -> None:
    """Refuse a file or a name that is no good, or not for this model, before the model is loaded."""
    from . import canvas, checkpoint, embedding, lora
    from .registry import Registry

    canvas.read(request)
    if request.lora is not None:
        lora.read(request.lora)
    if request.is_plain:
        return
    if request.aesthetic_embedding_file is not None:
        embedding.read(request.aesthetic_embedding_file)
    names = [name for name in (request.aesthetic_embedding, *request.mix) if name is not None]
    if names:
        home = checkpoint.home()
        space = checkpoint.locate(model or os.environ.get("AESTHETIC_MODEL"), home / "weights").space
        for name in names:
            Registry(home / "embeddings").read(name, space)


def _next(folder: Path, prefix: str, digits: int, suffix: str = "png") -> Path:
    """The first number after all that are taken, in whatever format: nothing is ever overwritten."""
    taken = [int(match[1]) for path in folder.iterdir() if (match := re.fullmatch(rf"{prefix}(\d+)\.\w+", path.name))]
    return folder / f"{prefix}{max(taken, default=-1) + 1:0{digits}}.{suffix}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m aesthetic", description="Aesthetic gradients.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_txt2img(commands.add_parser("txt2img", help="draw pictures, with the flags of the original script"))
    _add_sweep(commands.add_parser("sweep", help="draw a sheet of aesthetics × steps"))
    _add_evaluate(commands.add_parser("evaluate", help="measure what the steps do, with plots and intervals"))
    _add_bench(commands.add_parser("bench", help="measure how fast it is, beside plain diffusers"))
    _add_warm(commands.add_parser("warm", help="compile for the GPU that is here: for AESTHETIC_SPEED=compile"))
    command = commands.add_parser("embed", help="make an aesthetic from pictures")
    command.add_argument("pictures", type=Path, help="a folder, a zip, a tar or one picture")
    command.add_argument("-o", "--output", type=Path, required=True, metavar="NAME.safetensors")
    _add_ckpt(command)
    command.set_defaults(run=embed)
    command = commands.add_parser("embeddings", help="list the named aesthetics")
    command.add_argument("--preview", type=Path, metavar="NAME.png", help="draw a sheet of what each of them does")
    command.add_argument("--num_inference_steps", type=int, default=20, metavar="STEPS", help="of the sheet (20)")
    _add_ckpt(command)
    command.set_defaults(run=embeddings)
    command = commands.add_parser("convert", help="write an aesthetic as .pt or .safetensors, and show its notes")
    command.add_argument("aesthetic", type=Path, metavar="FILE", help=".pt or .safetensors")
    command.add_argument("-o", "--output", type=Path, required=True, metavar="NAME", help=".pt or .safetensors")
    command.set_defaults(run=convert)
    command = commands.add_parser("recipe", help="tell what made a picture, and how to make it again")
    command.add_argument("picture", type=Path, help="a PNG, WebP or JPEG that was drawn here")
    command.set_defaults(run=recipe)
    return parser


def _add_ckpt(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ckpt",
        metavar="MODEL",
        help="a name in weights/manifest.json, a folder or a .safetensors file (AESTHETIC_MODEL)",
    )


def _add_drawing(parser: argparse.ArgumentParser) -> None:
    """The flags that txt2img and sweep share."""
    parser.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    flag = parser.add_argument
    flag("--prompt", default=DEFAULTS["prompt"], help="what to draw")
    flag("--negative_prompt", default="", help="what to keep out")
    flag("--long_prompt", action="store_true", help="read all of a prompt, and weights in it as (red:1.3)")
    flag("--ddim_steps", type=int, default=DEFAULTS["num_inference_steps"], help="denoising steps")
    flag("--image", type=Path, metavar="FILE", help="a picture to start from, fitted into W × H")
    flag("--mask", type=Path, metavar="FILE", help="what of it to redraw: white")
    flag("--prompt_strength", type=float, default=DEFAULTS["prompt_strength"], help="how much of it to redraw")
    flag("--lora", type=Path, metavar="FILE", help="a LoRA to draw with, in .safetensors")
    flag("--lora_scale", type=float, default=DEFAULTS["lora_scale"], help="how much of it, 0 to 2")
    flag("--H", type=int, default=DEFAULTS["height"], help="height in pixels")
    flag("--W", type=int, default=DEFAULTS["width"], help="width in pixels")
    flag("--scale", type=float, default=DEFAULTS["guidance_scale"], help="guidance scale")
    flag("--seed", type=int, default=42, help="of the first picture; each takes the one after it")
    flag("--aesthetic_lr", type=float, default=DEFAULTS["aesthetic_lr"], help="length of a step")
    flag("--disable_safety_checker", action="store_true", help="show pictures that it would keep back")
    _add_ckpt(parser)


def _add_sweep(parser: argparse.ArgumentParser) -> None:
    _add_drawing(parser)
    parser.set_defaults(run=sweep)
    flag = parser.add_argument
    flag("--aesthetics", nargs="+", required=True, metavar="PATH_OR_NAME", help="a row each")
    flag("--steps", nargs="+", type=int, default=[0, 2, 5, 10, 20], help="towards the aesthetic, a column each")
    flag("--scheduler", choices=SCHEDULERS, default=DEFAULTS["scheduler"], help="the sampler")
    flag("-o", "--output", type=Path, default=Path("sweep.png"), metavar="NAME.png", help="where to write")


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    parser.set_defaults(run=evaluate)
    flag = parser.add_argument
    flag(
        "--prompts",
        type=Path,
        default=PROMPTS,
        metavar="FILE",
        help="one a line; those that begin with # are passed over",
    )
    flag("--aesthetics", nargs="+", metavar="PATH_OR_NAME", help="blank: all named ones that fit and are here")
    flag("--steps", nargs="+", type=int, default=[0, 1, 2, 3, 5, 10, 20], help="towards the aesthetic; 0 and others")
    flag("--seeds", type=int, default=4, help="pictures of each, 1 to 8")
    flag("--seed", type=int, default=42, help="of the first picture; each takes the one after it")
    flag("--outdir", type=Path, default=Path("outputs/evaluation"), help="where to write, and to go on if stopped")
    flag("--width", type=int, default=DEFAULTS["width"], help="pixels")
    flag("--height", type=int, default=DEFAULTS["height"], help="pixels")
    flag("--num_inference_steps", type=int, default=DEFAULTS["num_inference_steps"], help="denoising steps")
    flag("--guidance_scale", type=float, default=DEFAULTS["guidance_scale"], help="how closely to follow the prompt")
    flag("--scheduler", choices=SCHEDULERS, default=DEFAULTS["scheduler"], help="the sampler")
    flag("--aesthetic_lr", type=float, default=DEFAULTS["aesthetic_lr"], help="length of a step")
    flag("--negative_prompt", default="", help="what to keep out")
    flag("--disable_safety_checker", action="store_true", help="measure pictures that it would keep back")
    _add_ckpt(parser)


def _add_bench(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    parser.set_defaults(run=bench)
    flag = parser.add_argument
    flag("--speeds", nargs="+", metavar="SPEED", help="of plain, graph and compile; without, what the service takes")
    flag("--steps", type=int, default=DEFAULTS["num_inference_steps"], help="denoising steps")
    flag("--aesthetic_steps", type=int, default=DEFAULTS["aesthetic_steps"], help="steps towards the aesthetic")
    flag("--scheduler", choices=SCHEDULERS, default=DEFAULTS["scheduler"], help="the sampler")
    flag("--repeats", type=int, default=5, help="of everything, after a first time that doesn't count")
    flag("--json", type=Path, metavar="NAME.json", help="write all that was measured, for machines")
    _add_shapes(parser)


def _add_warm(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    parser.set_defaults(run=warm)
    _add_shapes(parser)


def _add_shapes(parser: argparse.ArgumentParser) -> None:
    flag = parser.add_argument
    flag("--random", choices=["sd15", "tiny"], help="random weights of these shapes, in place of a model")
    flag("--sizes", type=_size, nargs="+", default=[(512, 512)], metavar="WIDTHxHEIGHT", help="pixels")
    flag("--outputs", type=int, nargs="+", default=[1], metavar="COUNT", help="pictures at once")
    _add_ckpt(parser)


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    return int(width), int(height)


def _add_txt2img(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=txt2img)
    flag = parser.add_argument
    flag("--from-file", type=Path, metavar="FILE", help="draw each line of this file instead, once in each iteration")
    flag("--outdir", type=Path, default=Path("outputs/txt2img-samples"), help="where to write")
    flag("--skip_grid", action="store_true", help="write no grid")
    flag("--skip_save", action="store_true", help="write no single pictures")
    flag("--plms", action="store_true", help="sample with PLMS (the scheduler PNDM) instead of DDIM")
    flag("--scheduler", choices=SCHEDULERS, help="any other sampler")
    flag("--ddim_eta", type=float, default=0.0, help="DDIM's noise; 0 is deterministic")
    flag("--fixed_code", action="store_true", help="start every batch from the same noise")
    flag("--n_iter", type=int, default=2, help="batches of each prompt")
    flag("--n_samples", type=int, default=3, help="pictures in a batch")
    flag("--n_rows", type=int, default=0, help="pictures in a row of the grid; 0: n_samples")
    flag(
        "--aesthetic_steps", type=int, default=DEFAULTS["aesthetic_steps"], help="steps towards the aesthetic; 0: none"
    )
    flag("--aesthetic_embedding", metavar="PATH_OR_NAME", help="the aesthetic; blank: the model's default")
    flag("--output_format", choices=FORMATS, default=DEFAULTS["output_format"], help="of the single pictures")
    flag("--output_quality", type=int, default=DEFAULTS["output_quality"], help="of webp and jpg, 1 to 100")
    flag("--aesthetic_mix", metavar="MIX", help="several instead, as fantasy:0.7 gloomcore:-0.2")
    flag("--aesthetic_until", type=float, metavar="RISE", help="stop once the similarity has risen by this much")
    flag("--aesthetic_weight", type=float, default=1.0, help="0: the prompt as it is; 1: the personalised one")
    flag("--aesthetic_slerp", action="store_true", help="weigh on the sphere, token by token")
    flag("--aesthetic_text", default="", metavar="PHRASE", help="turn the aesthetic towards what this says")
    flag("--aesthetic_text_angle", type=float, default=DEFAULTS["aesthetic_text_angle"], help="how far, 0 to 1")
    flag("--aesthetic_text_negative", action="store_true", help="turn away from it instead")
    _add_drawing(parser)
    for name in IGNORED:
        flag(f"--{name}", help=argparse.SUPPRESS, nargs="?", const="")


if __name__ == "__main__":
    sys.exit(main())
