"""Tests of aesthetic/evaluation/."""
