from made_up import make, three  # noqa: F401  fixtures
