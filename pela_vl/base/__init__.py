"""What every room may use: configuration, files, progress, processes, errors, memory."""
