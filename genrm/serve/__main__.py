"""Serves judges from the command line: `python -m soundrl.genrm.serve --model models/FAPO-GenRM-4B --workers 2`."""

import logging
import sys

import tyro

from soundrl.genrm.serve.server import Serving
from soundrl.genrm.serve.servers import ServeError, main

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    try:
        main(tyro.cli(Serving))
    except (ValueError, ServeError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
