"""Units of bytes, as in `8 * MiB`."""

KiB = 1024
MiB = 1024 * KiB
GiB = 1024 * MiB
