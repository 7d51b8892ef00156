"""Builds the container image, runs it as described in docker-compose.yml, and checks it with the embedded
stack."""
