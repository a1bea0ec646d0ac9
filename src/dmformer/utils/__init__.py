"""Utilities for all other packages; they import none of them."""
