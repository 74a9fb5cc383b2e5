"""Tests of aesthetic/pipeline/."""
