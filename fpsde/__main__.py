"""Runs the command line as ``python -m fpsde``."""

from fpsde.cli import main

main(prog_name="fpsde")
