"""What the machine code of every kernel shows without a GPU: `python -m soundrl.kernels.certificate`."""
