"""A module beside it."""

NAME = "a model of the package"
