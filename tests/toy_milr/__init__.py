"""A third-party package as its author would write it: a tiny model and a critic that join milr by entry points.

The command line is tested through these, by its real entry, without the weight of a real model.
"""
