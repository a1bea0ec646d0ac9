"""Reports: HTML pages that need no network, no script and no other file, and pictures over photos."""
