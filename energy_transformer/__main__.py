"""`python -m energy_transformer`, which is the command `energy-transformer`."""

from energy_transformer_command import main

if __name__ == "__main__":
    main()
