"""``python -m cssoftmax``, for launchers such as ``accelerate launch -m cssoftmax``."""

from cssoftmax.cli import main

if __name__ == "__main__":
    main()
