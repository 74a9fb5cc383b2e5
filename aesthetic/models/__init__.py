"""Weights found, fetched and loaded: manifest, checkpoint, single file, download, CLIP, LoRA.

pipeline/ draws with them, acceleration/ makes that faster.
"""
