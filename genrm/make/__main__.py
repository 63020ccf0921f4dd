"""Makes a GenRM from the command line: `python -m soundrl.genrm.make --problems … --policies … --teacher … --base … --out …`."""

import signal

from soundrl.genrm.make.make import command

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # servers are ended, and a run saves its state
    command()
