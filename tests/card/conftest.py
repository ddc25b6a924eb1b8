from saved import *  # noqa: F403  its fixtures
