"""The same results, sooner: CUDA graphs and compiled modules.

Nothing here decides what is computed; without a GPU nothing here runs.
"""
