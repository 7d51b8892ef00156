"""Builds the container image, and runs its services in docker-compose.yml with the embedded stack."""
