"""evaluate: measure what the steps do, over many images."""

import argparse
import importlib.util
import sys
from pathlib import Path

from ..errors import RequestError
from .arguments import add_ckpt, add_input, aesthetic_input, given_inputs, given_path, prompts_in
from .cluster import add_cluster, cluster, require_ray

__all__ = ["PROMPTS", "add", "evaluate"]

INPUTS = ("negative_prompt", "aesthetic_lr", "width", "height", "num_inference_steps", "guidance_scale", "scheduler")
PROMPTS = Path(__file__).parent.parent / "evaluation" / "prompts.txt"


def add(parser: argparse.ArgumentParser) -> None:
    """Add the flags of evaluate."""
    flag = parser.add_argument
    flag("--prompts", type=given_path, default=PROMPTS, metavar="FILE", help="one per line; # starts a comment line")
    flag("--aesthetics", nargs="+", metavar="NAME_OR_PATH", help="blank: all named ones that fit and are present")
    flag("--steps", nargs="+", type=int, default=[0, 1, 2, 3, 5, 10, 20], help="towards the aesthetic; 0 and others")
    flag("--seeds", type=int, default=4, help="images of each, 1 to 8")
    flag("--outdir", type=given_path, default=Path("outputs/evaluation"), help="where to write, and to resume")
    for name in (*INPUTS, "seed", "disable_safety_checker"):
        add_input(parser, name)
    parser.set_defaults(seed=42)
    add_cluster(parser)
    add_ckpt(parser)


def evaluate(options: argparse.Namespace) -> None:
    """Draw prompts × aesthetics × steps × seeds, have CLIP score each image, and report what the steps do."""
    if importlib.util.find_spec("matplotlib") is None:
        raise RequestError("the plots need matplotlib: python -m pip install -r requirements-evaluate.txt")
    require_ray(options)
    prompts = prompts_in("--prompts", options.prompts, comment="#")
    aesthetics = None
    if options.aesthetics is not None:
        aesthetics = {Path(name).stem: aesthetic_input(name) for name in options.aesthetics}
        if len(aesthetics) < len(options.aesthetics):
            raise RequestError("--aesthetics names two of the same name: the report could not tell them apart")
    from ..evaluation import evaluate

    plan = evaluate.prepare(
        model=options.ckpt,
        prompts=prompts,
        aesthetics=aesthetics,
        steps=options.steps,
        seeds=options.seeds,
        drawing=given_inputs(options),
    )
    try:
        print(evaluate.run(plan, options.outdir, cluster(options)))
    except KeyboardInterrupt:
        print(f"Stopped: the same command continues in {options.outdir}", file=sys.stderr)
        raise
