"""What every room may use: errors for people, clocks, memory, files that are never half written."""
