"""Tasks, one folder each, and beside them what they share: recipes, jobs, image folders, sampling, progress."""
