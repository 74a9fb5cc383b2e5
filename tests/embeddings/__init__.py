"""Tests of aesthetic/embeddings/."""
