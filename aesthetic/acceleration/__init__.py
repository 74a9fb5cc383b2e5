"""The same results, sooner: parts of a model replayed as CUDA graphs, on a GPU only.

These modules take the place of others, behind the same calls, and leave what is computed to them.
"""
