"""A model behind a web page and a JSON API, for `dmformer serve`; needs the extra "serve"."""
