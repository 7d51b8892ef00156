"""The specification of the commit protocol: exhaustive check, and check of run histories against it."""
