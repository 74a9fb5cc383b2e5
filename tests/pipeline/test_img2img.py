"""From an image, compared with diffusers' own pipelines."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from aesthetic.errors import AestheticError, ImageError, RequestError
from aesthetic.images import init_image, metadata, user_images
from aesthetic.images.init_image import InitImage
from aesthetic.pipeline import img2img, schedulers
from aesthetic.request import SCHEDULERS, SIZES, Request
from aesthetic.service import Service
from tests.images.test_user_images import encoded, zipped

# diffusers' image-to-image leaves noise in what these two draw: see test_gaussian.py.
DIFFUSERS_OWN = [name for name in SCHEDULERS if name not in ("PNDM", "KLMS")]


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    noise = np.random.default_rng(1).integers(0, 256, (200, 300, 3), np.uint8)
    Image.fromarray(noise).resize((300, 200)).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    gray = Image.new("L", (300, 200))
    gray.paste(255, (90, 40, 170, 120))
    gray.save(tmp_path / "mask.png")
    return tmp_path / "mask.png"


@pytest.fixture
def over(quick: Request, picture: Path) -> Request:
    return replace(quick, aesthetic_steps=0, image=picture, width=192, num_inference_steps=5, prompt_strength=0.6)


def test_a_mask_mixes_the_new_image_with_the_given_one_by_its_gray_level() -> None:
    dice, levels = np.random.default_rng(0), np.arange(256, dtype=np.uint8).reshape(16, 16)
    given = dice.integers(0, 256, (16, 16, 3), np.uint8)
    new = dice.uniform(-1.5, 1.5, (1, 3, 16, 16))  # a decoder exceeds -1..1
    init = InitImage(image=Image.fromarray(given), mask=Image.fromarray(levels), files={})
    ours = img2img.paste_kept_pixels(torch.from_numpy(new), init).numpy()
    share, old = levels / 255, given.transpose(2, 0, 1)[None] / 127.5 - 1
    assert np.allclose(ours, share * new.clip(-1, 1) + (1 - share) * old, atol=1e-6)


def drawn(service: Service, request: Request) -> list[bytes]:
    return [image.tobytes() for image, _ in service.draw(request).images]


def plainly(service: Service, request: Request, kind: Any, **inputs: Any) -> bytes:
    """The image of diffusers' own pipeline, from the same latents and with its own noise."""
    scheduler = schedulers.build(request.scheduler, service.model.scheduler)
    pipe = kind(**{**service.model.pipeline.components, "scheduler": scheduler})
    generator = torch.Generator().manual_seed(request.seed or 0)
    picture: Image.Image = pipe(
        request.prompt,
        strength=request.prompt_strength,
        num_inference_steps=request.num_inference_steps,
        generator=generator,
        **inputs,
    ).images[0]
    return picture.tobytes()


@pytest.mark.parametrize("scheduler", DIFFUSERS_OWN)
@pytest.mark.parametrize("strength", [0.2, 0.6])
def test_equals_diffusers_image_to_image(service: Service, over: Request, scheduler: str, strength: float) -> None:
    request = replace(over, scheduler=scheduler, prompt_strength=strength)
    found = init_image.load_init_image(request)
    assert found is not None
    latents = img2img.encode_init_image(service.model, found).latents
    theirs = plainly(service, request, diffusers.StableDiffusionImg2ImgPipeline, image=latents)
    assert drawn(service, request) == [theirs]


@pytest.mark.parametrize("scheduler", DIFFUSERS_OWN)
def test_with_a_mask_equals_diffusers_inpainting(
    service: Service, over: Request, mask: Path, scheduler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = replace(over, scheduler=scheduler, mask=mask)
    found = init_image.load_init_image(request)
    assert found is not None
    start = img2img.encode_init_image(service.model, found)
    inputs = {"image": start.latents, "masked_image_latents": start.latents, "mask_image": start.mask}
    size = {"width": found.image.width, "height": found.image.height}
    theirs = plainly(service, request, diffusers.StableDiffusionInpaintPipeline, **inputs, **size)
    monkeypatch.setattr(img2img, "paste_kept_pixels", lambda image, _: image)
    assert drawn(service, request) == [theirs]


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_at_full_strength_equals_drawing_without_an_image(service: Service, over: Request, scheduler: str) -> None:
    request = replace(over, scheduler=scheduler, prompt_strength=1.0)
    assert drawn(service, request) == drawn(service, replace(request, image=None))


def test_the_steps_that_redraw_are_counted_exactly(over: Request) -> None:
    for strength, steps, redrawn in (
        (0.58, 50, 29),
        (0.29, 100, 29),
        (0.57, 100, 57),
        (0.58, 200, 116),
        (0.8, 12, 9),
        (0.8, 50, 40),
        (1.0, 500, 500),
        (0.01, 100, 1),
    ):
        request = replace(over, prompt_strength=strength, num_inference_steps=steps)
        assert request.img2img_steps == redrawn


def test_the_unet_runs_for_the_counted_steps(service: Service, over: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    restore = img2img.Img2ImgPipeline.restore_kept_latents

    def counting(self: img2img.Img2ImgPipeline, step: int, *arguments: Any) -> dict[str, torch.Tensor]:
        taken.append(step)
        return restore(self, step, *arguments)

    monkeypatch.setattr(img2img.Img2ImgPipeline, "restore_kept_latents", counting)
    service.draw(replace(over, scheduler="DDIM", num_inference_steps=50, prompt_strength=0.58))
    assert len(taken) == 29


@pytest.mark.parametrize("scheduler", ["PNDM", "K_EULER_ANCESTRAL"])
def test_each_image_of_a_batch_equals_the_image_drawn_alone(
    service: Service, over: Request, mask: Path, scheduler: str
) -> None:
    for request in (replace(over, scheduler=scheduler), replace(over, scheduler=scheduler, mask=mask)):
        alone = [drawn(service, replace(request, seed=7 + i))[0] for i in range(3)]
        assert drawn(service, replace(request, num_outputs=3)) == alone
        assert len(set(alone)) == 3


def test_no_pixel_outside_of_the_mask_changes(service: Service, over: Request, mask: Path) -> None:
    request = replace(over, mask=mask)
    found = init_image.load_init_image(request)
    assert found is not None
    assert found.mask is not None
    [(ours, _)] = service.draw(request).images
    kept, same = np.asarray(found.mask) == 0, (np.asarray(ours) == np.asarray(found.image)).all(axis=-1)
    assert kept.any()
    assert same[kept].all()
    assert not same[np.asarray(found.mask) == 255].all()


def test_each_stop_of_a_sweep_from_an_image_equals_the_image_drawn_alone(
    service: Service, over: Request, mask: Path
) -> None:
    request = replace(over, mask=mask, aesthetic_lr=0.01)
    alone = [drawn(service, replace(request, aesthetic_steps=steps))[0] for steps in (0, 3)]
    assert drawn(service, replace(request, aesthetic_sweep="0,3")) == alone
    assert alone[0] != alone[1]


def test_the_recipe_knows_the_files_and_draws_the_same_again(
    service: Service, over: Request, picture: Path, mask: Path, tmp_path: Path
) -> None:
    [path], drawing = service.predict(replace(over, mask=mask), tmp_path)
    recipe = metadata.read_recipe(path)
    assert recipe.files == {
        name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in (("image", picture), ("mask", mask))
    }
    assert b"picture.png" not in path.read_bytes()
    request = recipe.rebuild(image=picture, mask=mask)
    assert request == drawing.request
    [(again, same)] = service.draw(request).images
    assert again.tobytes() == drawing.images[0][0].tobytes()
    assert same == recipe
    with pytest.raises(RequestError, match="the mask came from a file, sha256"):
        recipe.rebuild(image=picture)
    with pytest.raises(RequestError, match="and the image was drawn with"):
        recipe.rebuild(image=mask, mask=mask)


def test_without_an_image_nothing_of_it_is_in_the_recipe_s_files(service: Service, quick: Request) -> None:
    assert service.draw(quick).images[0][1].files == {}
    assert drawn(service, quick) == drawn(service, replace(quick, prompt_strength=0.1))


def test_unusable_images_and_masks_are_refused(over: Request, quick: Request, mask: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="mask needs image"):
        replace(quick, mask=mask)
    with pytest.raises(RequestError, match=r"prompt_strength 0\.1 of 5 num_inference_steps is less than one step"):
        replace(over, prompt_strength=0.1)
    files = {
        "text": b"text",
        "empty": b"",
        "zip": zipped({"a.png": encoded()}),
        "long": encoded(Image.new("RGB", (2000, 50))),
        "square": encoded(Image.new("L", (50, 50), "white")),
        "black": encoded(Image.new("L", (300, 200))),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    refused: list[tuple[str, dict[str, Any]]] = [
        ("image: the file is not an image", {"image": tmp_path / "text"}),
        ("image: the file is empty", {"image": tmp_path / "empty"}),
        ("image: the file is not an image", {"image": tmp_path / "zip"}),
        ("image: there is no file", {"image": tmp_path / "nothing"}),
        ("image: of 2000 × 50 pixels, less than half would be left", {"image": tmp_path / "long"}),
        ("mask: the file is not an image", {"mask": tmp_path / "text"}),
        ("mask: it has 50 × 50 pixels and image 300 × 200", {"mask": tmp_path / "square"}),
        ("mask: nothing in it is white", {"mask": tmp_path / "black"}),
    ]
    for name, changes in refused:
        with pytest.raises(ImageError, match=name):
            init_image.load_init_image(replace(over, **changes))


def masked(over: Request, mask: Image.Image) -> Any:
    """The mask of a request, as numbers, when this one is given."""
    assert over.image is not None
    path = over.image.with_name("given.png")
    path.write_bytes(encoded(mask))
    found = init_image.load_init_image(replace(over, mask=path))
    assert found is not None
    return np.asarray(found.mask)


def clear(color: tuple[int, int, int]) -> Image.Image:
    return Image.new("RGBA", (300, 200), (*color, 0))


HOLE = (90, 40, 170, 120)


def test_white_on_a_transparent_layer_is_redrawn(over: Request) -> None:
    gray = Image.new("L", (300, 200))
    gray.paste(255, HOLE)
    for background in ((0, 0, 0), (255, 255, 255), (10, 200, 10)):
        layer = clear(background)
        layer.paste((255, 255, 255, 255), HOLE)
        assert abs(masked(over, layer).astype(int) - masked(over, gray)).max() <= 1
    soft = clear((255, 255, 255))
    soft.putalpha(Image.linear_gradient("L").resize((300, 200)))
    assert abs(masked(over, soft).astype(int) - masked(over, soft.getchannel("A"))).max() <= 1


def test_parts_erased_from_the_image_or_from_black_are_redrawn(over: Request, picture: Path) -> None:
    gray = Image.new("L", (300, 200))
    gray.paste(255, HOLE)
    with Image.open(picture) as image:
        photograph = image.convert("RGBA")
    for whole in (photograph, Image.new("RGBA", (300, 200), "black")):
        for hidden in ((0, 0, 0, 0), (255, 255, 255, 0)):
            erased = whole.copy()
            erased.paste(hidden, HOLE)
            assert abs(masked(over, erased).astype(int) - masked(over, gray)).max() <= 1


def test_white_paint_and_a_bright_image_are_told_apart(over: Request, picture: Path) -> None:
    gray = Image.new("L", (300, 200))
    gray.paste(255, HOLE)
    with Image.open(picture) as image:
        bright = image.point(lambda level: 200 + level // 5)
    bright.save(picture)
    erased = bright.convert("RGBA")
    erased.paste((0, 0, 0, 0), HOLE)
    assert abs(masked(over, erased).astype(int) - masked(over, gray)).max() <= 1
    Image.new("RGB", (300, 200), "white").save(picture)
    layer = clear((0, 0, 0))
    layer.paste((255, 255, 255, 255), HOLE)
    assert abs(masked(over, layer).astype(int) - masked(over, gray)).max() <= 1


def test_ambiguous_transparent_masks_are_refused(over: Request) -> None:
    red, stripes = clear((0, 0, 0)), clear((0, 0, 0))
    red.paste((255, 0, 0, 255), HOLE)
    stripes.paste((255, 255, 255, 255), HOLE)
    stripes.paste((0, 0, 0, 255), (0, 0, 50, 200))
    other = Image.effect_noise((300, 200), 80).convert("RGBA")
    other.paste((0, 0, 0, 0), HOLE)
    for mask in (red, stripes, other):
        with pytest.raises(ImageError, match="mask: it is transparent in places, and elsewhere neither white, nor"):
            masked(over, mask)


@pytest.mark.parametrize("color", [(255, 255, 255), (0, 0, 0)])
@pytest.mark.parametrize("alpha", [0, 1, 100])
def test_a_mask_of_only_clear_and_faint_paint_is_refused(over: Request, color: Any, alpha: int) -> None:
    whole, spot = Image.new("RGBA", (300, 200), (*color, alpha)), clear((0, 0, 0))
    spot.paste((*color, alpha), HOLE)
    for mask in (whole, spot):
        with pytest.raises(ImageError, match="mask: nothing in it is white and opaque, and only that is redrawn"):
            masked(over, mask)


def test_clear_corners_of_an_opaque_mask_are_kept(over: Request) -> None:
    gray = Image.new("L", (300, 200))
    gray.paste(255, HOLE)
    for hidden in ((0, 0, 0, 0), (255, 255, 255, 0)):
        cornered = gray.convert("RGBA")
        cornered.paste(hidden, (50, 0, 58, 8))
        assert abs(masked(over, cornered).astype(int) - masked(over, gray)).max() <= 1


@pytest.mark.parametrize("color", ["white", (255, 255, 255, 200), (200, 200, 200, 255)])
def test_a_mask_that_keeps_nothing_is_logged(over: Request, color: Any, caplog: pytest.LogCaptureFixture) -> None:
    assert masked(over, Image.new("RGBA", (300, 200), color)).min() >= 128
    assert "mask: nothing in it is black, so all of the image is redrawn" in caplog.text


def test_a_mask_that_keeps_something_logs_nothing(over: Request, mask: Path, caplog: pytest.LogCaptureFixture) -> None:
    init_image.load_init_image(replace(over, mask=mask))
    assert caplog.text == ""


def test_the_shape_of_the_file_counts_for_a_photograph_that_is_decoded_smaller(
    over: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(user_images, "LARGE", 1000)
    monkeypatch.setattr(user_images, "ENOUGH", 50)
    (tmp_path / "large.jpg").write_bytes(encoded(Image.new("RGB", (301, 201)), "JPEG"))
    white = Image.new("L", (301, 201), "white")
    white.paste(0, (0, 0, 100, 100))
    assert masked(replace(over, image=tmp_path / "large.jpg"), white).shape == (128, 192)
    with pytest.raises(ImageError, match="mask: it has 50 × 50 pixels and image 301 × 201"):
        masked(replace(over, image=tmp_path / "large.jpg"), Image.new("L", (50, 50), "white"))


def test_sizes() -> None:
    for image, frame, size in (
        ((900, 600), (512, 512), (512, 320)),
        ((600, 900), (512, 512), (320, 512)),
        ((800, 600), (512, 512), (512, 384)),
        ((4000, 5000), (512, 512), (384, 512)),
        ((1920, 1080), (512, 512), (512, 256)),
        ((1000, 800), (512, 320), (384, 320)),
        ((3000, 1000), (512, 512), (512, 192)),
        ((4000, 1000), (256, 256), (256, 128)),
        ((1, 1), (1024, 768), (768, 768)),
        ((1024, 768), (1024, 768), (1024, 768)),
    ):
        assert init_image.fitted(image, frame) == size


@given(st.integers(1, 5000), st.integers(1, 5000), st.sampled_from(SIZES), st.sampled_from(SIZES))
def test_a_size_fits_its_own_frame(width: int, height: int, most_width: int, most_height: int) -> None:
    try:
        size = init_image.fitted((width, height), (most_width, most_height))
    except AestheticError:
        return
    assert {size[0], size[1]} <= set(SIZES)
    assert size[0] <= most_width
    assert size[1] <= most_height
    assert init_image.fitted((width, height), size) == size
