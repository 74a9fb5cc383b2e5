"""Tests of aesthetic/cli/."""
