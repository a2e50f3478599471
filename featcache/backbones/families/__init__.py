"""Where networks come from: one module a family, named in `featcache.backbones.registry`."""
