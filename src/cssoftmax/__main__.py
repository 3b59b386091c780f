"""``python -m cssoftmax``."""

from cssoftmax.cli import main

main()
