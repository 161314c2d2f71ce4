"""`python -m spequant`: the command line, for launchers such as torchrun."""

from spequant.app.cli import main

if __name__ == "__main__":
    main()
