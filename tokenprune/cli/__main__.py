"""`python -m tokenprune.cli`, which torchrun starts."""

from tokenprune.cli import main

main()
