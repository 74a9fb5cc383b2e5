"""The tests. snapshot.py writes the models that they run on."""

import aesthetic  # noqa: F401  before transformers, which it keeps quiet
