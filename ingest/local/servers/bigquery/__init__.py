"""An emulator of the part of BigQuery that this project uses: REST server, row validation, storage in DuckDB."""
