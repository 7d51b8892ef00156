"""Builds the container image, and tests it as described in docker-compose.yml with the embedded stack."""
