"""An aesthetic, one CLIP vector: load, check, save, average; by name; mix, turn and slerp.

models/ loads the CLIP that turns images into vectors.
"""
