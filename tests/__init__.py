"""The tests. snapshot.py writes the models that they run on."""

import os

import torch

import aesthetic  # noqa: F401  before transformers, which it keeps quiet

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before kernels are imported, which then run on the CPU
