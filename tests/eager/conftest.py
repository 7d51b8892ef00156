"""The fixtures of the eager tests."""

from eager_kit import eager, eager_redis  # type: ignore[import-not-found]

__all__ = ["eager", "eager_redis"]
