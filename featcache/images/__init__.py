"""Images: what lists them, reads them and decodes them, and the transform into a network's image."""
