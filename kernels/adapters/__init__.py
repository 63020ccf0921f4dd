"""Soundrl's kernels inside other stacks. Each module imports torch alone; its host is imported where it is called."""
