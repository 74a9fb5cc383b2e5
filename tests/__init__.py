"""The tests. snapshot.py writes the models that they run on."""

import os

import torch

import aesthetic  # noqa: F401  before transformers, which it keeps quiet

if not torch.cuda.is_available():  # Triton chooses its interpreter when it is imported, which transformers does
    os.environ["TRITON_INTERPRET"] = "1"
