"""A module of it."""


def describe() -> str:
    """Return what it is."""
    return "a model from src"
