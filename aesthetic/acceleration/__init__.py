"""The same results, sooner: CUDA graphs and compiled modules, on a GPU only.

These modules take the place of others, behind the same calls, and leave what is computed to them.
"""
