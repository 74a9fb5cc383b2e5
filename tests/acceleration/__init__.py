"""Tests of aesthetic/acceleration/."""
