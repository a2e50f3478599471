"""Training past the frozen backbone: its later layers on cached activations, or the whole network from images."""
