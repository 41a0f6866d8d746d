"""``python -m hwnas``: the command line, as torchrun starts it."""

from hwnas.cli import main

if __name__ == "__main__":
    main(prog_name="hwnas")
