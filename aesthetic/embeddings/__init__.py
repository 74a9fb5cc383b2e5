"""An aesthetic, one CLIP vector: load, check, save, average; by name; mix, turn and slerp.

Files and vectors only: embedding images takes a CLIP, which models/ has.
"""
