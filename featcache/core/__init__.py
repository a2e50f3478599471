"""The ground: errors, the recipe, progress, reserved names, process-wide settings, files written whole."""
