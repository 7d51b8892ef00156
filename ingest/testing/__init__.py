"""The test kit, for our tests and for those who build on the core: messages, MockRuntime, a simulated world."""
