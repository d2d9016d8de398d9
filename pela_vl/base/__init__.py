"""What every other package may use: configuration, files, progress, processes, errors, memory."""
