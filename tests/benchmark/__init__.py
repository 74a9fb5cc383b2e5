"""Tests of aesthetic/benchmark/."""
