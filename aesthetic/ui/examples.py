"""Pictures to choose by: what each aesthetic does, and the strip of cats that the page opens on, drawn by the demo."""

from pathlib import Path

__all__ = ["HERE", "OPENING", "STOPS", "STRIP", "thumbnail"]

HERE = Path(__file__).parent
OPENING = {"prompt": "a cat", "aesthetic_embedding": "night", "aesthetic_steps": 5, "seed": 5}
OPENING |= {"num_inference_steps": 20, "scheduler": "DPMSolverMultistep"}
# Steps, similarity and drift at each stop of the strip.
STOPS: list[tuple[int, float | None, float]] = [(0, -0.045, 0.0), (1, 0.028, 0.093), (2, 0.104, 0.184)]
STOPS += [(3, 0.183, 0.275), (5, 0.341, 0.453), (10, 0.695, 0.837), (20, 0.977, 1.282)]
STRIP = [(str(HERE / "opening" / f"{steps}.webp"), f"{steps} steps") for steps, _, _ in STOPS]


def thumbnail(folder: Path, name: str) -> str:
    """What shows an aesthetic: as `embeddings --preview` kept it beside the index in `folder`, or one of the demo's."""
    places = [path / "thumbnails" / f"{name}.webp" for path in (folder, HERE)]
    return str(next((path for path in places if path.is_file()), HERE / "thumbnails" / "unknown.webp"))
