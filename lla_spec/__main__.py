"""`python -m lla_spec` is the command `lla-spec`."""

from lla_spec.cli import main

if __name__ == "__main__":
    main()
