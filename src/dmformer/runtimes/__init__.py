"""Exported files read without torch: what a file says of itself, what runs it, and its answers."""
