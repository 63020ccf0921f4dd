"""Makes a GenRM from the command line: `python -m soundrl.genrm.make --problems … --policies … --teacher … --base … --out …`."""

from soundrl.genrm.make.make import command

if __name__ == "__main__":
    command()
