"""The inspector: a page over run folders, in a process of its own that only reads (`python -m soundrl.view runs/`)."""
