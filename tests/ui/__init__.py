"""Tests of aesthetic/ui/."""
