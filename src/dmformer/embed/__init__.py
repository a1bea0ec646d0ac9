"""Features of photos: files of them, nearest neighbours, and a page about the whole set."""
