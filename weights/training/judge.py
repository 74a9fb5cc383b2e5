"""Two small classifiers, independent of the model: one recognizes styles, the other subjects.

They are trained on true renders and judge what the model draws. The judge of styles has never seen the subjects of the
evaluation. The judge of subjects knows 200 of them, and its accuracy is that on images held out of its training.
"""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from . import captions
from .library import OBJECTS, Library, held_out
from .loop import adamw, autocast, descend, rate_at, steps
from .settings import JUDGE, LIBRARY, PROMPTS

__all__ = ["FOLDER", "Judges", "train"]

FOLDER = Path(__file__).parent / "judges"


@dataclass(frozen=True, kw_only=True)
class Judges:
    """Both classifiers, and the labels of their training.

    subjects: those that can be told apart, the evaluation's prompts first; captions: how to prompt for each.
    accuracy: on images that were held out.
    """

    styles: tuple[str, ...]
    subjects: tuple[str, ...]
    prompts: tuple[str, ...]
    captions: dict[str, str]
    style_phrases: dict[str, str]
    accuracy: dict[str, float]
    style_net: nn.Module
    subject_net: nn.Module

    @classmethod
    def load(cls, folder: Path = FOLDER) -> Self:
        """Read what `train` wrote."""
        facts = json.loads((folder / "judges.json").read_text(encoding="utf-8"))
        return cls(
            **facts | {name: tuple(facts[name]) for name in ("styles", "subjects", "prompts")},
            style_net=_read_net(folder / "style.safetensors", len(facts["styles"])),
            subject_net=_read_net(folder / "subject.safetensors", len(facts["subjects"])),
        )

    def style_probabilities(self, pictures: Tensor) -> Tensor:
        """[N, styles], adding up to 1, of uint8 pictures [N, 3, H, W]."""
        return _look(self.style_net, pictures).softmax(1)

    def subject_scores(self, pictures: Tensor) -> Tensor:
        """[N, subjects], higher is likelier, of uint8 pictures [N, 3, H, W]."""
        return _look(self.subject_net, pictures)


def train(library: Library, total: int = JUDGE.steps) -> dict[str, float]:
    """Train both, and write them to judges/ beside this file; returns their accuracies."""
    rng = random.Random(JUDGE.seed)
    singles = [i for i, picture in enumerate(library.pictures) if picture.is_single]
    subjects = _subjects(library, rng)
    of = {number: place for place, number in enumerate(subjects)}
    unseen = {i for i, one in enumerate(library.emoji) if one.label in PROMPTS or rng.random() < JUDGE.held_out}
    parts: dict[str, list[list[int]]] = {"style": [[], []], "subject": [[], []]}
    for i in singles:
        subject = library.pictures[i].subjects[0]
        parts["style"][subject in unseen].append(i)
        if subject in of:
            parts["subject"][rng.random() < JUDGE.held_out].append(i)
    places = torch.tensor([of.get(picture.subjects[0], -1) for picture in library.pictures], device=library.device)
    accuracy: dict[str, float] = {}
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, labels, count in (("style", library.style, len(captions.STYLES)), ("subject", places, len(subjects))):
        known, new = (torch.tensor(part, device=library.device) for part in parts[name])
        net = _fit(name, library.small[known], labels[known], count, total)
        ranks = _look(net, library.small[new]).argsort(1, descending=True)
        for top in (1, 5):
            right = (ranks[:, :top] == labels[new][:, None]).any(1).float().mean().item()
            accuracy[f"{name}s_top{top}"] = right
        save_file(
            {key: value.half().contiguous() for key, value in net.state_dict().items()}, FOLDER / f"{name}.safetensors"
        )
    names = [library.emoji[number].label for number in subjects]
    facts = {
        "styles": captions.STYLES,
        "subjects": names,
        "prompts": PROMPTS,
        "captions": {label: captions.with_article(label) for label in names},
        "style_phrases": {style: phrase for style, (phrase, _) in captions.PHRASES.items()},
        "accuracy": accuracy,
    }
    (FOLDER / "judges.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return accuracy


def _subjects(library: Library, rng: random.Random) -> list[int]:
    """Numbers of the emoji to tell apart: PROMPTS, and others with short names, but none that is held out."""
    named = {one.label: i for i, one in enumerate(library.emoji)}
    first = [named[label] for label in PROMPTS]
    out = held_out(library.emoji)
    drawn = {picture.subjects[0] for picture in library.pictures}
    fit = [
        i
        for i, one in enumerate(library.emoji)
        if one.group in OBJECTS and len(one.label.split()) <= 2 and i not in out and i in drawn and i not in first
    ]
    return first + sorted(rng.sample(fit, min(len(fit), JUDGE.subjects - len(first))))


def _read_net(path: Path, classes: int) -> nn.Module:
    net = _net(classes)
    net.load_state_dict({key: value.float() for key, value in load_file(path).items()})
    return net.eval()


def _net(classes: int) -> nn.Module:
    layers: list[nn.Module] = []
    before = 3
    for channels in JUDGE.channels:
        for stride, width in ((2, before), (1, channels)):
            layers += [nn.Conv2d(width, channels, 3, stride, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
        before = channels
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.3), nn.Linear(before, classes))


def _fit(name: str, pictures: Tensor, labels: Tensor, classes: int, total: int) -> nn.Module:
    torch.manual_seed(JUDGE.seed)
    net = _net(classes).to(pictures.device)
    optimizer = adamw(net.parameters(), JUDGE.rate, 0.05)
    for step, report in steps(f"Judge of {name}s", total):
        chosen = torch.randint(len(pictures), (JUDGE.batch,), device=pictures.device)
        with autocast(pictures.device):
            loss = F.cross_entropy(net(_varied(pictures[chosen])).float(), labels[chosen], label_smoothing=0.05)
        descend(loss, optimizer, JUDGE.rate * rate_at(step, total, 100))
        report(loss)
    return net.eval()


def _varied(pictures: Tensor) -> Tensor:
    """Turned, moved, scaled, blurred and noisy, as images that the model draws may be and true renders are not."""
    count, device = len(pictures), pictures.device
    angle, size = (torch.rand(count, device=device) - 0.5) * 0.3, 0.85 + 0.35 * torch.rand(count, device=device)
    shift = (torch.rand(count, 2, 1, device=device) - 0.5) * 0.25
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(-1, 2, 2) * size[:, None, None]
    grid = F.affine_grid(torch.cat([turn, shift], 2), list(pictures.shape), align_corners=False)
    varied = F.grid_sample(_scaled(pictures), grid, padding_mode="border", align_corners=False)
    side = int(torch.randint(pictures.shape[-1] // 3, pictures.shape[-1] + 1, ()))
    small = F.interpolate(varied, (side, side), mode="area")
    varied = F.interpolate(small, pictures.shape[2:], mode="bilinear")
    return varied + torch.randn_like(varied) * 0.1 * torch.rand(count, 1, 1, 1, device=device)


def _scaled(pictures: Tensor) -> Tensor:
    return pictures.float() / 127.5 - 1


@torch.no_grad()
def _look(net: nn.Module, pictures: Tensor) -> Tensor:
    device = next(net.parameters()).device
    scores = []
    for part in torch.split(pictures, 512):
        small = F.interpolate(part.to(device).float(), (LIBRARY.small,) * 2, mode="area").round().byte()
        scores.append(net(_scaled(small)).float())
    return torch.cat(scores).cpu() if pictures.device.type == "cpu" else torch.cat(scores)
