"""Workloads: one module for each task. The runner, the assembly and the engine know none of them by name."""
