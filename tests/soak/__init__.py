"""The service under load and with faults, on Cog's own server: `python -m tests.soak`. pytest doesn't run it."""
