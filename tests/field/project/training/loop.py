"""What trains."""

from .ranks import meet


def run() -> None:
    """Train."""
    meet()
