"""Helpers shared by the tests' rooms."""
