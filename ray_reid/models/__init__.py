"""Models: the package that a training writes, networks, and pretrained models by role."""
