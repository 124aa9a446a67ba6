"""Asks the person in front of it."""

if input("Overwrite the results? [y/n] ") == "y":
    print("overwritten", flush=True)
