"""`dmformer serve`: a model behind a web page and a JSON API; needs the extra "serve"."""
