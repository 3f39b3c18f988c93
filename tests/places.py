"""Where the tests find things: this checkout, its configs, the files beside the tests."""

from pathlib import Path

TESTS = Path(__file__).resolve().parent
REPOSITORY = TESTS.parent
CONFIGS = REPOSITORY / "configs"
