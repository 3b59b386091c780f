"""The command: ``cssoftmax``, or ``python -m cssoftmax`` for launchers such as ``accelerate launch -m cssoftmax``."""

import sys


def main() -> None:
    try:
        from cssoftmax import cli
    except ModuleNotFoundError as missing:
        sys.exit(f"error: {missing.name} is not installed; `pip install 'cssoftmax[train]'` installs all it takes")
    cli.main()


if __name__ == "__main__":
    main()
