"""The command line: one file a verb, each a few lines over the face."""

from hwnas.cli.app import main as main
