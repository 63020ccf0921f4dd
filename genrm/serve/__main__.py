"""Serves judges from the command line: `python -m soundrl.genrm.serve --model models/FAPO-GenRM-4B --workers 2`."""

import logging

from soundrl.genrm.evaluate import command
from soundrl.genrm.serve.server import Serving
from soundrl.genrm.serve.servers import main

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    command(main, Serving)
