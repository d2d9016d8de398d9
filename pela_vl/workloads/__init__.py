"""Workloads: what is a task's own in a run, one module a task. The runner, the assembly and the engine know none by name."""
