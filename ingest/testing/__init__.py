"""Test kit, for our tests and for users of the core: message builders, MockRuntime, a simulated world."""
