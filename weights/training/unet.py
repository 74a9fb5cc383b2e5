"""The UNet: predicts the noise in latents, conditioned on the text tower's last hidden state.

Ho et al., arXiv 2006.11239, with its schedule, and a tenth of the prompts empty for classifier-free guidance
(Ho and Salimans, arXiv 2207.12598). Training resumes from WORK/unet.pt if that exists, or else starts from the weights
in WORK/unet.
"""

import copy
import json
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from . import clip, vae
from .library import Library
from .loop import adamw, autocast, descend, rate_at, steps
from .settings import UNET, WORK

__all__ = ["train"]

STATE = WORK / "unet.pt"
SAVED_EVERY = 1000
MEASURED = 20  # batches


def train(library: Library, total: int = UNET.steps, seconds: float | None = None) -> dict[str, float]:
    """Train, and write the average of the weights to WORK; returns the loss on subjects that were held out.

    seconds: take as many steps as fit in, by the pace of the first ones, in place of `total`.
    """
    torch.manual_seed(UNET.seed)
    device = library.device
    batches = _Batches(library)
    unet = _start().to(device, memory_format=torch.channels_last)
    average = copy.deepcopy(unet).requires_grad_(False)
    optimizer = adamw(unet.parameters(), UNET.rate, UNET.weight_decay)
    start = _resume(unet, average, optimizer, device)
    seen = library.select(held=False)
    step_at = _Step(unet, average, optimizer, lambda: batches.draw(seen), device)
    if seconds is not None:
        total = start + int(seconds / _pace(lambda: step_at(0.0)))
    for step, report in steps("UNet", total, start):
        report(step_at(UNET.rate * rate_at(step, total, UNET.warmup)))
        if (step + 1) % SAVED_EVERY == 0 or step + 1 == total:
            _save(unet, average, optimizer, step + 1)
    facts = {
        "steps": float(total),
        "loss": _measure(average, batches, seen),
        "held_out_loss": _measure(average, batches, library.select(held=True)),
    }
    (WORK / "unet.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return facts


class _Batches:
    """The library as the UNet sees it: latents, scaled, and what the text tower says of a caption."""

    def __init__(self, library: Library) -> None:
        device = library.device
        autoencoder = vae.load(device)
        self._latents = vae.encode(autoencoder, library.large) * autoencoder.config.scaling_factor
        self._tokens = library.tokens
        self._text, self._empty = clip.load_text(device), clip.empty_prompt(device)
        self._signals = DDIMScheduler(**UNET.schedule).alphas_cumprod.to(device)

    def draw(self, among: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Noisy latents of some of the pictures, the noise, its time, and the hidden states of a caption of each."""
        device = among.device
        chosen = among[torch.randint(len(among), (UNET.batch,), device=device)]
        latents = self._latents[chosen]
        times = torch.randint(len(self._signals), chosen.shape, device=device)
        signal = self._signals[times][:, None, None, None]
        noise = torch.randn_like(latents)
        noisy = signal.sqrt() * latents + (1 - signal).sqrt() * noise
        return noisy.contiguous(memory_format=torch.channels_last), noise, times, self._hidden(chosen)

    @torch.no_grad()
    def _hidden(self, chosen: Tensor) -> Tensor:
        words = self._tokens[chosen, torch.randint(self._tokens.shape[1], chosen.shape, device=chosen.device)]
        dropped = torch.rand(len(chosen), device=chosen.device) < UNET.dropped
        words = torch.where(dropped[:, None], self._empty, words)
        hidden: Tensor = self._text(input_ids=words).last_hidden_state
        return hidden


class _Step:
    """One step of training, from drawing the batch to averaging the weights.

    On a GPU it is compiled, and recorded as a CUDA graph: the kernels of so small a model are done before the next is
    launched.
    """

    def __init__(self, unet: Any, average: Any, optimizer: Any, draw: Callable[[], Any], device: torch.device) -> None:
        self._unet, self._optimizer, self._draw, self._device = unet, optimizer, draw, device
        self._weights, self._averages = list(unet.parameters()), list(average.parameters())
        self._blend = get_ema_multi_avg_fn(UNET.average)  # type: ignore[no-untyped-call]
        self._rate = torch.zeros((), device=device)
        self._loss_of = torch.compile(_loss) if device.type == "cuda" else _loss
        self._replay = self._record() if device.type == "cuda" else self._run

    def __call__(self, rate: float) -> Tensor:
        """Take it at a learning rate; returns the loss, which the next step overwrites."""
        self._rate.fill_(rate)
        loss: Tensor = self._replay()
        return loss

    def _run(self) -> Tensor:
        with autocast(self._device):
            loss: Tensor = self._loss_of(self._unet, *self._draw())
        descend(loss, self._optimizer, self._rate)
        self._blend(self._averages, self._weights, None)
        return loss.detach()

    def _record(self) -> Callable[[], Tensor]:
        torch.backends.cudnn.benchmark = True
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        with torch.cuda.stream(stream):
            for _ in range(3):  # compiles, and makes the optimizer's moments; the learning rate is still 0
                self._run()
        torch.cuda.current_stream().wait_stream(stream)
        self._optimizer.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss = self._run()

        def replay() -> Tensor:
            graph.replay()
            return loss

        return replay


def _start() -> Any:
    if (WORK / "unet" / "config.json").is_file():
        return UNet2DConditionModel.from_pretrained(WORK / "unet")
    return UNet2DConditionModel(**UNET.config)


def _loss(unet: Any, noisy: Tensor, noise: Tensor, times: Tensor, hidden: Tensor) -> Tensor:
    return F.mse_loss(unet(noisy, times, hidden).sample.float(), noise)


@torch.no_grad()
def _measure(unet: Any, batches: _Batches, among: Tensor) -> float:
    """The mean loss of MEASURED batches, with the same noise each time."""
    torch.manual_seed(0)
    with autocast(among.device):
        return sum(_loss(unet, *batches.draw(among)).item() for _ in range(MEASURED)) / MEASURED


def _pace(step: Callable[[], object], count: int = 40) -> float:
    """Seconds per step, after a warm-up."""
    for number in range(2 * count):
        if number == count:
            _wait()
            start = time.perf_counter()
        step()
    _wait()
    return (time.perf_counter() - start) / count


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _save(unet: Any, average: Any, optimizer: torch.optim.Optimizer, step: int) -> None:
    average.save_pretrained(WORK / "unet")
    whole = {
        "unet": unet.state_dict(),
        "average": average.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
    }
    torch.save(whole, STATE)


def _resume(unet: Any, average: Any, optimizer: torch.optim.Optimizer, device: torch.device) -> int:
    """The step to go on from."""
    if not STATE.is_file():
        return 0
    whole = torch.load(STATE, map_location=device, weights_only=True)
    unet.load_state_dict(whole["unet"])
    average.load_state_dict(whole["average"])
    optimizer.load_state_dict(whole["optimizer"])
    step: int = whole["step"]
    return step
