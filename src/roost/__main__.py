"""`python -m roost` is `roost`."""

from roost.cli.main import main

if __name__ == "__main__":
    main(prog_name="roost")
