"""The test kit for our tests and for users of the core: message builders, MockRuntime, and a simulated world."""
