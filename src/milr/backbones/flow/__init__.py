"""Flow models: the drawer of a diffusers pipeline, below everything that knows a search.

`noise` names a picture's noise by integers, `families` says what differs between pipelines, `folder` finds one and
checks it, `drawer` draws. Light to import: torch, transformers and diffusers come with those modules, not with it.
"""
