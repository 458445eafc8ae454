"""Pretrained models by role; a reference is a hub id, a local folder, or `miniature:NAME`."""
