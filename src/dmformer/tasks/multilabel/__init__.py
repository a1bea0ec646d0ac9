"""Several labels per photo: classification with a probability and a threshold for every class."""
