"""Tests of aesthetic/models/."""
