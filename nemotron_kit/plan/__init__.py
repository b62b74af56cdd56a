"""The plan: a frozen value that says all that a launch will do, made without touching anything."""
