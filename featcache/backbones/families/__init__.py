"""Families of networks: one module each, listed in `featcache.backbones.registry`."""
