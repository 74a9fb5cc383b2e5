"""Hostile inputs by the thousand, each in a process of its own: `python -m tests.fuzz`.

__main__.py mutates, runs and reports; child.py runs one input within limits; shrink.py makes a kept input smaller. The
others make inputs, each its kinds: pickles.py, weights.py, archives.py, images.py, texts.py; mutation.py has what they
share.
"""
