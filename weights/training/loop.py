"""What the trainings share: the optimizer, a learning rate with warm-up and decay, and progress reports."""

import math
import time
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor
from tqdm import tqdm

__all__ = ["adamw", "autocast", "descend", "rate_at", "steps"]

SINKS = 0.6  # the share of the steps, at the end, over which the rate falls to zero


def rate_at(step: int, total: int, warmup: int) -> float:
    """The share of the full learning rate: rises, stays, and sinks as a cosine."""
    left = min(1.0, (total - step) / (total * SINKS))
    return min(1.0, (step + 1) / warmup) * 0.5 * (1 - math.cos(math.pi * left))


def adamw(parameters: Iterable[Tensor], rate: float, weight_decay: float = 0.01) -> torch.optim.AdamW:
    """AdamW that decays matrices only; on a GPU in one kernel, which a CUDA graph can hold."""
    all_of_them = list(parameters)
    groups = [
        {"params": [p for p in all_of_them if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in all_of_them if p.ndim <= 1], "weight_decay": 0.0},
    ]
    cuda = all_of_them[0].is_cuda
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.99), fused=cuda, capturable=cuda)


def autocast(device: torch.device) -> torch.autocast:
    """bf16 on a GPU."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def steps(name: str, total: int, start: int = 0, every: int = 100) -> Iterator[tuple[int, Callable[[Tensor], None]]]:
    """Number the steps, with a progress bar; the second part takes each step's loss, to show it now and then."""
    bar = tqdm(range(start, total), initial=start, total=total, desc=name, mininterval=10)
    begin = time.perf_counter()
    for step in bar:

        def report(loss: Tensor, step: int = step) -> None:
            if step % every == 0:
                bar.set_postfix_str(f"loss {loss.item():.4f}, {time.perf_counter() - begin:.0f} s")

        yield step, report


def descend(loss: Tensor, optimizer: torch.optim.Optimizer, rate: float | Tensor, clip: float = 1.0) -> None:
    """One step of the optimizer at a learning rate; gradients are clipped to the norm `clip`."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], clip)
    optimizer.step()
