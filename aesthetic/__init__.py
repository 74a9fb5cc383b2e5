"""Stable Diffusion with aesthetic gradients (arXiv 2209.12330).

gradient.py is the idea; service.py is where everything comes together; README.md is for everybody else.
"""

import os

# Or transformers warns, as soon as it is imported, of a torchvision that is not there and that nothing here needs.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

__version__ = "0.1.0"
