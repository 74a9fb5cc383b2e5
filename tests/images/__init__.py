"""Tests of aesthetic/images/."""
