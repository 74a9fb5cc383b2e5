"""Stable Diffusion with aesthetic gradients (arXiv 2209.12330).

gradient.py is the idea; service.py is where everything comes together; README.md is for everybody else.
"""

__version__ = "0.1.0"
