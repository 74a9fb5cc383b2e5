"""The UNet: predicts the noise in latents, told what to draw by the text tower's last hidden state.

Ho et al., arXiv 2006.11239, with Stable Diffusion's schedule, and a tenth of the prompts empty for
classifier-free guidance (Ho and Salimans, arXiv 2207.12598). It goes on from WORK/unet.pt if that is there, or
else from the weights in WORK/unet.
"""

import json
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from . import clip, vae
from .library import Library
from .loop import adamw, autocast, descend, rate_at, steps
from .settings import UNET, WORK

__all__ = ["train"]

STATE = WORK / "unet.pt"
SAVED_EVERY = 1000


def train(library: Library, total: int = UNET.steps, seconds: float | None = None) -> dict[str, float]:
    """Train, and write the average of the weights to WORK; returns the loss on subjects that were held out.

    seconds: take as many steps as fit in, by the pace of the first ones, in place of `total`.
    """
    torch.manual_seed(UNET.seed)
    device = library.device
    text, empty = clip.load_text(device), clip.empty_prompt(device)
    autoencoder = vae.load(device)
    latents = vae.encode(autoencoder, library.large) * autoencoder.config.scaling_factor
    tokens, seen, held = library.tokens, library.select(held=False), library.select(held=True)
    unet = _start().to(device, memory_format=torch.channels_last)
    average = AveragedModel(unet, multi_avg_fn=get_ema_multi_avg_fn(UNET.average))  # type: ignore[no-untyped-call]
    optimizer = adamw(unet.parameters(), UNET.rate, UNET.weight_decay)
    start = _resume(unet, average, optimizer, device)
    loss_of = torch.compile(_loss) if device.type == "cuda" else _loss
    alphas = DDIMScheduler(**UNET.schedule).alphas_cumprod.to(device)

    def batch(among: Tensor) -> tuple[Tensor, Tensor]:
        chosen = among[torch.randint(len(among), (UNET.batch,), device=device)]
        words = tokens[chosen, torch.randint(tokens.shape[1], chosen.shape, device=device)]
        dropped = torch.rand(len(chosen), device=device) < UNET.dropped
        return latents[chosen], torch.where(dropped[:, None], empty, words)

    def loss_of_some() -> Tensor:
        with autocast(device):
            return loss_of(unet, text, alphas, *batch(seen))

    if seconds is not None:
        total = start + int(seconds / _pace(lambda: descend(loss_of_some(), optimizer, 0.0)))
    for step, report in steps("UNet", total, start):
        loss = loss_of_some()
        descend(loss, optimizer, UNET.rate * rate_at(step, total, UNET.warmup))
        average.update_parameters(unet)
        report(loss)
        if (step + 1) % SAVED_EVERY == 0 or step + 1 == total:
            _save(unet, average, optimizer, step + 1)
    facts = {"steps": float(total)}
    for name, among in (("loss", seen), ("held_out_loss", held)):
        torch.manual_seed(0)
        with torch.no_grad(), autocast(device):
            losses = [_loss(average.module, text, alphas, *batch(among)).item() for _ in range(20)]
        facts[name] = sum(losses) / len(losses)
    (WORK / "unet.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return facts


def _start() -> Any:
    if (WORK / "unet" / "config.json").is_file():
        return UNet2DConditionModel.from_pretrained(WORK / "unet")
    return UNet2DConditionModel(**UNET.config)


def _loss(unet: Any, text: Any, alphas: Tensor, latents: Tensor, tokens: Tensor) -> Tensor:
    noise = torch.randn_like(latents)
    times = torch.randint(len(alphas), (len(latents),), device=latents.device)
    signal = alphas[times][:, None, None, None]
    noisy = signal.sqrt() * latents + (1 - signal).sqrt() * noise
    with torch.no_grad():
        hidden = text(input_ids=tokens).last_hidden_state
    guess = unet(noisy.contiguous(memory_format=torch.channels_last), times, hidden).sample
    return F.mse_loss(guess.float(), noise)


def _pace(step: Callable[[], None], count: int = 40) -> float:
    """Seconds for a step, once what is made on first use has been made."""
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
    average.module.save_pretrained(WORK / "unet")
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
