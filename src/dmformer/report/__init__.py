"""Reports: HTML pages that need no network, no script and no other file, and drawings on photos."""
