"""The fixtures of the eager tests."""

from tests.kit.eager_fleet import eager, eager_redis

__all__ = ["eager", "eager_redis"]
