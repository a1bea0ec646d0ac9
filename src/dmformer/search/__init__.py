"""Search a few options of a recipe: trials that are ordinary runs, pruned by their validation scores."""
