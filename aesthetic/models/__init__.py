"""Weights found, fetched and loaded: manifest, checkpoint, single file, download, CLIP, LoRA.

What they compute is in pipeline/; how they compute it sooner is in acceleration/.
"""
