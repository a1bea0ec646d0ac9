"""Reports: HTML pages that need no network and no other file, and drawings on photos."""

CHECK = "check.html"
"""Name of the page on the data in a run's folder."""
