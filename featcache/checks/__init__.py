"""Checks: stored vectors against the reference, and what this machine can do."""
