"""Tasks, a folder each, and beside them what they share: recipes, jobs, folders of photos, sampling, progress."""
