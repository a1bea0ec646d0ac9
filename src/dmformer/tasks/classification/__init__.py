"""Classification: a class for a photo."""
