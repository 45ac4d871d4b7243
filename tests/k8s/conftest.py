from tests.support.control_plane import control_plane  # noqa: F401 - a fixture
