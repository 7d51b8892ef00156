"""The container image: built, run as docker-compose.yml says, and checked against the embedded stack."""
