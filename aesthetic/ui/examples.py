"""Pictures to choose by: what each aesthetic does, and the strip of cats that the page opens on, drawn by the demo."""

from pathlib import Path

__all__ = ["HERE", "OPENING", "STOPS", "STRIP", "thumbnail"]

HERE = Path(__file__).parent
OPENING = {"prompt": "a cat", "aesthetic_embedding": "night", "aesthetic_steps": 5, "seed": 5}
OPENING |= {"num_inference_steps": 20, "scheduler": "DPMSolverMultistep"}
STOPS = [(0, 0.1, 0.0), (1, 0.2, 0.1), (2, 0.3, 0.2), (3, 0.4, 0.3), (5, 0.5, 0.4), (10, 0.6, 0.5), (20, 0.7, 0.6)]
STRIP = [(str(HERE / "opening" / f"{steps}.webp"), f"{steps} steps") for steps, _, _ in STOPS]


def thumbnail(folder: Path, name: str) -> str:
    """What shows an aesthetic: as `embeddings --preview` kept it beside the index in `folder`, or one of the demo's."""
    places = [path / "thumbnails" / f"{name}.webp" for path in (folder, HERE)]
    return str(next((path for path in places if path.is_file()), HERE / "thumbnails" / "unknown.webp"))
