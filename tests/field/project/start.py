"""A few lines that start what a package beside them does."""


def main() -> None:
    """Import late, as a command line does that wants to be quick."""
    from training import loop

    loop.run()


if __name__ == "__main__":
    main()
