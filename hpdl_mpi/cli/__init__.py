"""The `hpdl` command: a thin coat over the Python API."""
