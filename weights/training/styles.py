"""Thirteen looks. Two are artists' own; the others are derived from any artist's drawing.

A style takes RGBA drawings [N, 4, S, S] in 0..1 and gives RGB pictures [N, 3, S, S] in 0..1. All texture is
coarser than the 16 pixels of a latent: finer one the VAE would lose. Lengths are in pixels of 512.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["STYLE_OF", "apply"]

Colour = tuple[float, float, float]
Style = Callable[[Tensor, torch.Generator], Tensor]
WHITE, BLACK = (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)
LUMA = (0.299, 0.587, 0.114)


def apply(style: str, drawings: Tensor, generator: torch.Generator) -> Tensor:
    """Draw in a style; the generator, of the CPU, moves what is different in every picture of it."""
    return STYLE_OF[style](drawings, generator).clamp(0, 1)


def plain(drawings: Tensor, _: torch.Generator) -> Tensor:
    """The artist's own colours on white: flat, glossy or in ink, as the artist draws."""
    return _over(drawings, _fill(drawings, WHITE))


def blueprint(drawings: Tensor, _: torch.Generator) -> Tensor:
    """White lines on blue."""
    paper = _fill(drawings, (0.07, 0.23, 0.52))
    shade = (0.10 + 0.30 * _luma(drawings)) * drawings[:, 3:]
    return _mix(_mix(paper, _fill(drawings, (0.55, 0.75, 0.95)), shade), _fill(drawings, WHITE), _lines(drawings, 7))


def neon(drawings: Tensor, _: torch.Generator) -> Tensor:
    """Glowing tubes in the dark."""
    colour = _saturated(drawings)
    tubes = _lines(drawings, 9) * colour
    return (
        _fill(drawings, (0.04, 0.02, 0.09))
        + _blur(tubes, 18) * 1.3
        + _blur(tubes, 5) * 0.9
        + _lines(drawings, 5) * 0.35
    )


def night(drawings: Tensor, _: torch.Generator) -> Tensor:
    """Moonlight: everything dark and blue under a pale moon."""
    sky = _gradient(drawings, (0.02, 0.03, 0.14), (0.10, 0.16, 0.38))
    sky = _mix(sky, _fill(drawings, (0.98, 0.95, 0.78)), _disc(drawings, (424, 84), 58))
    lit = drawings[:, :3] * _fill(drawings, (0.46, 0.58, 0.84)) + _fill(drawings, (0.04, 0.06, 0.16))
    return _mix(sky, lit, drawings[:, 3:])


def sepia(drawings: Tensor, _: torch.Generator) -> Tensor:
    """Brown on old paper that has darkened at its edges."""
    paper = _over(drawings, _fill(drawings, (0.88, 0.88, 0.88)))
    toned = _toned(_luma_of(paper), [(0.20, 0.10, 0.04), (0.60, 0.41, 0.22), (0.97, 0.90, 0.74)])
    return toned * (1 - 0.35 * _corners(drawings))


def pixel(drawings: Tensor, _: torch.Generator) -> Tensor:
    """32 × 32 squares in few colours, on a pale sky."""
    size = drawings.shape[-1]
    small = F.interpolate(_premultiplied(drawings), (32, 32), mode="area")
    alpha = (small[:, 3:] > 0.4).float()
    colour = (small[:, :3] / small[:, 3:].clamp(min=1e-3) * 4).round() / 4
    squares = _mix(_fill(small, (0.72, 0.85, 0.98)), colour, alpha)
    return F.interpolate(squares, (size, size), mode="nearest")


def watercolour(drawings: Tensor, generator: torch.Generator) -> Tensor:
    """Pale washes with wavering outlines on warm paper."""
    wet = _wavered(_premultiplied(drawings), 10, generator)
    wet = _blur(wet, 4)
    colour = wet[:, :3] / wet[:, 3:].clamp(min=1e-3)
    wash = 0.55 + 0.45 * _clouds(drawings, 8, generator)
    rim = (_blur(wet[:, 3:], 3) - _blur(wet[:, 3:], 14)).clamp(min=0)
    paper = _fill(drawings, (0.98, 0.95, 0.88))
    return _mix(paper, colour, wet[:, 3:] * (0.72 * wash + 0.1)) - 0.5 * rim * (1 - 0.6 * colour)


def pop(drawings: Tensor, _: torch.Generator) -> Tensor:
    """Three loud colours and a thick outline on turquoise."""
    luma = (_blur(_luma(drawings), 2) * 2.999).floor() / 2
    inked = _toned(luma, [(0.35, 0.05, 0.45), (0.95, 0.12, 0.50), (1.0, 0.88, 0.10)])
    picture = _mix(_fill(drawings, (0.0, 0.72, 0.76)), inked, drawings[:, 3:])
    return _mix(picture, _fill(drawings, (0.05, 0.02, 0.08)), _outline(drawings, 13))


def chalk(drawings: Tensor, generator: torch.Generator) -> Tensor:
    """Soft chalk on a green board."""
    board = _fill(drawings, (0.11, 0.24, 0.19)) * (0.85 + 0.3 * _clouds(drawings, 6, generator))
    dust = 0.35 + 0.35 * _clouds(drawings, 14, generator)
    pale = 0.45 * drawings[:, :3] + 0.5
    filled = _mix(board, pale, drawings[:, 3:] * dust * (0.3 + 0.7 * _luma(drawings)))
    return _mix(filled, _fill(drawings, (0.95, 0.96, 0.90)), 0.85 * _blur(_lines(drawings, 9), 1.5))


def sunset(drawings: Tensor, _: torch.Generator) -> Tensor:
    """Dusk: violet shadows and peach light before an orange sky."""
    sky = _gradient(drawings, (0.42, 0.16, 0.50), (1.0, 0.62, 0.25))
    lit = _toned(_luma(drawings), [(0.18, 0.04, 0.26), (0.78, 0.22, 0.38), (1.0, 0.86, 0.58)])
    return _mix(sky, lit, drawings[:, 3:])


def gold(drawings: Tensor, _: torch.Generator) -> Tensor:
    """A gilded relief on burgundy."""
    height = _blur(0.6 * _luma(drawings) + 0.4, 3) * _blur(drawings[:, 3:], 3)
    light = height - torch.roll(height, (7, 7), (2, 3))
    metal = (0.35 + 0.35 * _luma(drawings) + 1.1 * light).clamp(0, 1)
    gilt = _toned(metal, [(0.28, 0.13, 0.02), (0.86, 0.62, 0.14), (1.0, 0.97, 0.72)])
    return _mix(_fill(drawings, (0.30, 0.03, 0.10)), gilt, drawings[:, 3:])


STYLE_OF: dict[str, Style] = {
    "flat": plain,
    "glossy": plain,
    "ink": plain,
    "blueprint": blueprint,
    "neon": neon,
    "night": night,
    "sepia": sepia,
    "pixel": pixel,
    "watercolour": watercolour,
    "pop": pop,
    "chalk": chalk,
    "sunset": sunset,
    "gold": gold,
}


def _fill(like: Tensor, colour: Colour) -> Tensor:
    return torch.tensor(colour, device=like.device)[None, :, None, None].expand(len(like), 3, *like.shape[2:])


def _mix(below: Tensor, above: Tensor, share: Tensor) -> Tensor:
    return below + (above - below) * share


def _over(drawings: Tensor, below: Tensor) -> Tensor:
    return _mix(below, drawings[:, :3], drawings[:, 3:])


def _premultiplied(drawings: Tensor) -> Tensor:
    return torch.cat([drawings[:, :3] * drawings[:, 3:], drawings[:, 3:]], 1)


def _luma_of(rgb: Tensor) -> Tensor:
    return (rgb * torch.tensor(LUMA, device=rgb.device)[None, :, None, None]).sum(1, keepdim=True)


def _luma(drawings: Tensor) -> Tensor:
    return _luma_of(drawings[:, :3])


def _saturated(drawings: Tensor) -> Tensor:
    """The hue at its brightest, around the lines too; where there is none, a cold white."""
    soft = _blur(_premultiplied(drawings), 8)
    colour = soft[:, :3] / soft[:, 3:].clamp(min=1e-3)
    low, high = colour.amin(1, keepdim=True), colour.amax(1, keepdim=True)
    vivid = (colour - low) / (high - low).clamp(min=1e-3)
    grey = (1 - (high - low) * 5).clamp(0, 1)
    return _mix(vivid, _fill(drawings, (0.55, 0.85, 1.0)), grey)


def _toned(values: Tensor, colours: Sequence[Colour]) -> Tensor:
    """From dark to light through equally spaced colours; values [N, 1, S, S] in 0..1."""
    place = values.clamp(0, 1) * (len(colours) - 1)
    shares = [(1 - (place - i).abs()).clamp(min=0) for i in range(len(colours))]
    return sum(
        (share * _fill(values, colour) for share, colour in zip(shares, colours, strict=True)),
        torch.zeros(()).to(values),
    )


def _blur(picture: Tensor, sigma: float) -> Tensor:
    reach = int(3 * sigma)
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=picture.device) / sigma) ** 2)
    weights = (weights / weights.sum()).expand(picture.shape[1], 1, 1, -1)
    padded = F.pad(picture, (reach, reach, reach, reach), mode="replicate")
    across = F.conv2d(padded, weights, groups=picture.shape[1])
    return F.conv2d(across, weights.transpose(2, 3), groups=picture.shape[1])


def _lines(drawings: Tensor, width: int) -> Tensor:
    """Where colours change, as lines [N, 1, S, S] about `width` wide."""
    soft = _blur(_premultiplied(drawings), 1.5)
    across, down = soft - torch.roll(soft, 3, 3), soft - torch.roll(soft, 3, 2)
    change = (across.abs() + down.abs()).amax(1, keepdim=True)
    return _blur(F.max_pool2d((change * 3 - 0.4).clamp(0, 1), width - 2, 1, (width - 2) // 2), 1.2)


def _outline(drawings: Tensor, width: int) -> Tensor:
    alpha = drawings[:, 3:]
    return (F.max_pool2d(alpha, width, 1, width // 2) + F.max_pool2d(-alpha, width, 1, width // 2)).clamp(0, 1)


def _gradient(like: Tensor, top: Colour, bottom: Colour) -> Tensor:
    share = torch.linspace(0, 1, like.shape[2], device=like.device)[None, None, :, None]
    return _mix(_fill(like, top), _fill(like, bottom), share)


def _grid(like: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns in pixels of 512."""
    line = torch.arange(like.shape[-1], device=like.device) * (512 / like.shape[-1])
    return line[:, None], line[None]


def _disc(like: Tensor, centre: tuple[float, float], radius: float) -> Tensor:
    y, x = _grid(like)
    return ((radius - ((x - centre[0]) ** 2 + (y - centre[1]) ** 2).sqrt()) / 3).clamp(0, 1)[None, None]


def _corners(like: Tensor) -> Tensor:
    y, x = _grid(like)
    return ((((x - 256) / 256) ** 2 + ((y - 256) / 256) ** 2) / 2)[None, None] ** 1.5


def _clouds(like: Tensor, cells: int, generator: torch.Generator) -> Tensor:
    """Smooth noise [N, 1, S, S] in 0..1."""
    noise = torch.rand(len(like), 1, cells, cells, generator=generator).to(like)
    return F.interpolate(noise, like.shape[2:], mode="bicubic").clamp(0, 1)


def _wavered(picture: Tensor, amplitude: float, generator: torch.Generator) -> Tensor:
    flow = torch.randn(len(picture), 2, 12, 12, generator=generator).to(picture) * (amplitude / 512)
    flow = F.interpolate(flow, picture.shape[2:], mode="bicubic").permute(0, 2, 3, 1)
    still = torch.eye(2, 3, device=picture.device).expand(len(picture), 2, 3)
    grid = F.affine_grid(still, list(picture.shape), align_corners=False)
    return F.grid_sample(picture, grid + flow, padding_mode="border", align_corners=False)
