"""Exported files used without torch: their metadata, their runtimes and their outputs."""
