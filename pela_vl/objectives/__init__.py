"""Training objectives: what one step of a task computes from a batch."""
